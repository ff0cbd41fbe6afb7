"""The loss and the gradients of one batch, without an optimiser."""

from __future__ import annotations

import numpy as np

from nbllama.data.batch import Batch
from nbllama.lora.pairs import Adapter
from nbllama.model.bound import Bound
from nbllama.model.passes import Model


def loss_and_gradients(
    model: Model, adapter: Adapter, batch: Batch, checkpointing: bool
) -> tuple[float, dict[str, np.ndarray]]:
    """Compute the mean loss (nats per trained token) and its gradients, as in training.

    The gradients are float32, with the same names and shapes as `adapter.parameters()`.
    """
    bound = Bound(model, adapter, trained=True)
    acts = model.activations(adapter, batch.n_tokens, batch.n_trained, checkpointing=checkpointing)
    buffers = model.loss_buffers(adapter, batch.n_trained)
    model.forward(bound, acts, batch)
    total = model.loss(bound, acts, buffers, batch, weight=1 / batch.n_trained, gradient=True)
    model.backward(bound, acts, batch)
    return total / batch.n_trained, bound.grads
