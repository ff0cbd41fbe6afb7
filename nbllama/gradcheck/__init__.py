"""Check the gradients of a model against finite differences in float64, tensor by tensor.

| module | contents |
|---|---|
| `options` | the command line |
| `part` | extracts a few blocks of a model as a separate model |
| `check` | compares gradients of the kernels with finite differences of the plain float64 model |
| `table` | the result as text |
"""

from __future__ import annotations
