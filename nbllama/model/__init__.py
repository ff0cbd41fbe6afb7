"""The tensors of a model, the computation of one block, and the passes through all blocks.

Read the modules in this order: `weights` (the tensors in the file), `bound` (binds an adapter to
the tensors), `activations` (the memory for a step), `block` (one block, forward and backward),
`passes` (the whole model). `reference` implements the same model in plain float64 numpy, with one
operation per line.
"""

from nbllama.model.passes import Model, load_model

__all__ = ["Model", "load_model"]
