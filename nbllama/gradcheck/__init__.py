"""Check the gradients of a model against finite differences in float64, tensor by tensor.

| module | does |
|---|---|
| `options` | the command line |
| `part` | a few blocks of a model as a separate model |
| `check` | gradients of the kernels against slopes of the plain float64 model |
| `table` | the result as text |
"""

from __future__ import annotations
