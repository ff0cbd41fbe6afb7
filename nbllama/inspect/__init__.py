"""Show the content of a file: a GGUF model, a checkpoint, or an adapter of any format.

| module | contents |
|---|---|
| `look` | `look`: detects the kind of a file and returns everything about it as a `Found` |
| `found` | `Found` |
| `contents` | reads a model, a checkpoint or an adapter |
| `show` | a `Found` as text or as JSON |

No file is trusted: readers check sizes before they allocate memory, control characters are escaped,
and the output is limited.
"""

from __future__ import annotations
