"""A model that is computed: its tensors, one block, the passes through all of them.

Read them in this order: `weights` (tensors of the file), `bound` (an adapter at work on them),
`activations` (memory of a step), `block` (one block, forward and backward), `passes` (the model).
`reference` is the same in plain float64 numpy, one operation a line.
"""

from nbllama.model.passes import Model, load_model

__all__ = ["Model", "load_model"]
