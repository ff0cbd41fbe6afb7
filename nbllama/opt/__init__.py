"""Optimisers on flat dicts of float32 arrays, one per file, and the learning-rate schedules.

| module | contents |
|---|---|
| `names` | the table of optimisers |
| `optimiser` | the common part: moments, clipping, decay, and the step over all arrays |
| `adamw`, `sgd`, `lion` | their formulas |
| `schedule` | the factor on the learning rate, by step |
| `arrays` | operations on whole arrays |

This file imports nothing, so that `names` and `schedule` can be imported without numpy.
"""
