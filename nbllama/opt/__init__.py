"""Optimisers on flat dicts of float32 arrays, one a file, and the learning-rate schedules.

| module | does |
|---|---|
| `names` | the table of optimisers |
| `optimiser` | what all of them share: moments, clipping, decay, and the step over all arrays |
| `adamw`, `sgd`, `lion` | their formulas |
| `schedule` | the factor on the learning rate, by step |
| `arrays` | what optimisers do to whole arrays |

This file imports nothing, so that `names` and `schedule` come without numpy.
"""
