"""An adapter that knows the base model it was made for, so that it can be written by itself."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from nbllama.adapter.file import save_adapter
from nbllama.errors import UsageError
from nbllama.lora import pairs

if TYPE_CHECKING:
    from nbllama.arch import Hparams


@dataclass(repr=False)
class Adapter(pairs.Adapter):
    """A LoRA adapter: pairs of float32 arrays by the name of the base tensor.

    `hp`: the numbers of the base model, which the file formats ask for.
    """

    hp: Hparams | None = None

    @classmethod
    def of(cls, adapter: pairs.Adapter, hp: Hparams) -> Adapter:
        """Wrap the same arrays (no copies) for a base model with `hp`."""
        return cls(adapter.arch, adapter.alpha, adapter.lora_r, adapter.pairs, hp)

    def __repr__(self) -> str:
        scale = f"r {self.lora_r}, alpha {self.alpha:g}"
        size = f"{len(self.pairs)} pairs, {self.n_parameters} parameters"
        return f"<Adapter of {self.arch}: {scale}, {size}>"

    def copy(self) -> Adapter:
        """Return the adapter with its own arrays, which later training does not change."""
        own = {
            name: pairs.Pair(np.array(pair.a, order="C"), np.array(pair.b, order="C"))
            for name, pair in self.pairs.items()
        }
        return replace(self, pairs=own)

    def save(self, path: str | os.PathLike[str]) -> list[str]:
        """Write the adapter, whole or not at all.

        Parameters
        ----------
        path : str or path
            The name says the format: one that ends in `.bin` is for llama.cpp of 2023, one that
            ends in `/`, or an existing folder, is for Hugging Face PEFT, any other name (such as
            `lora.gguf`) is for today's llama.cpp.

        Returns
        -------
        list of str
            A line for each thing that the readers of this format will not do as it was trained.

        Raises
        ------
        OutputError
            The path cannot be written.
        UsageError
            The format has no place for this adapter.
        """
        if self.hp is None:
            raise UsageError(
                "which base model is this adapter for? Use nbllama.save_adapter(path, adapter,"
                " model)"
            )
        return save_adapter(path, self, self.hp)
