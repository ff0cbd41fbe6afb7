"""Optimisers for flat dicts of float32 arrays, and learning-rate schedules.

Each optimiser has its own file.

| module | contents |
|---|---|
| `names` | the table of optimisers |
| `optimiser` | the shared code: moments, clipping, decay, and the step over all arrays |
| `adamw`, `sgd`, `lion` | the formulas of the optimisers |
| `schedule` | the learning-rate factor of each step |
| `arrays` | operations on whole arrays |

This file imports nothing, so `names` and `schedule` can be imported without numpy.
"""
