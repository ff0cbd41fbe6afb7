"""The computation of a model: its tensors, one block, and the passes through all blocks.

Read the modules in this order: `weights` (tensors of the file), `bound` (an adapter bound to them),
`activations` (memory of a step), `block` (one block, forward and backward), `passes` (the model).
`reference` is the same model in plain float64 numpy, one operation per line.
"""

from nbllama.model.passes import Model, load_model

__all__ = ["Model", "load_model"]
