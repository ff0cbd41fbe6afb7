"""Optimisers for flat dicts of float32 arrays, one per file, and learning-rate schedules.

| module | contents |
|---|---|
| `names` | the table of optimisers |
| `optimiser` | the shared code: moments, clipping, decay, and the step over all arrays |
| `adamw`, `sgd`, `lion` | the formulas of the optimisers |
| `schedule` | the learning-rate factor of each step |
| `arrays` | operations on whole arrays |

This file imports nothing, so `names` and `schedule` can be imported without numpy.
"""
