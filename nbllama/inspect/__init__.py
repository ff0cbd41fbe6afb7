"""Show the contents of a file: a GGUF model, a checkpoint, or an adapter of any format.

| module | contents |
|---|---|
| `look` | `look`, which detects the kind of a file and describes the file as a `Found` |
| `found` | `Found` |
| `contents` | reads a model, a checkpoint or an adapter |
| `show` | formats a `Found` as text or as JSON |

Files are not trusted: readers check sizes before they allocate memory, control characters are
escaped, and the size of the output is limited.
"""

from __future__ import annotations
