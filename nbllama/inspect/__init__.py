"""What is in a file: a GGUF model, a checkpoint, an adapter of any format.

| module | does |
|---|---|
| `look` | `look`: what kind of file it is, and everything about it as a `Found` |
| `found` | the `Found` |
| `contents` | a model's, a checkpoint's, an adapter's |
| `show` | a `Found` as text or as JSON |

No file is trusted: readers prove sizes before they take memory, control characters are escaped,
and what is printed is bounded.
"""

from __future__ import annotations
