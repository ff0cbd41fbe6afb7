"""An adapter that can be saved on its own, because it includes its base model's hyperparameters."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from nbllama.adapter.file import save_adapter
from nbllama.arguments import file_name
from nbllama.errors import UsageError
from nbllama.lora import pairs

if TYPE_CHECKING:
    from nbllama.arch import Hparams


@dataclass(repr=False)
class Adapter(pairs.Adapter):
    """A LoRA adapter: pairs of float32 arrays by base tensor name.

    `hp` contains the hyperparameters of the base model, which the file formats require.
    """

    hp: Hparams | None = None

    @classmethod
    def of(cls, adapter: pairs.Adapter, hp: Hparams) -> Adapter:
        """Wrap the arrays of `adapter`, without copying them, and add `hp` of the base model."""
        return cls(adapter.arch, adapter.alpha, adapter.lora_r, adapter.pairs, hp)

    def __repr__(self) -> str:
        scale = f"r {self.lora_r}, alpha {self.alpha:g}"
        size = f"{len(self.pairs)} pairs, {self.n_parameters} parameters"
        return f"<Adapter of {self.arch}: {scale}, {size}>"

    def copy(self) -> Adapter:
        """Return a copy of the adapter that is not affected by further training."""
        copies = {
            name: pairs.Pair(np.array(pair.a, order="C"), np.array(pair.b, order="C"))
            for name, pair in self.pairs.items()
        }
        return replace(self, pairs=copies)

    def save(self, path: str | os.PathLike[str]) -> list[str]:
        """Write the adapter atomically.

        Parameters
        ----------
        path : str or path
            The name determines the format: `.bin` at the end selects llama.cpp's format of 2023, a
            final `/` or the name of an existing folder selects Hugging Face PEFT, and any other
            name (such as `lora.gguf`) selects llama.cpp's current format.

        Returns
        -------
        list of str
            A line for each part of the adapter that readers of this format ignore or refuse.

        Raises
        ------
        OutputError
            The path cannot be written, or is a file of another kind, such as a model.
        UsageError
            The format cannot store this adapter.
        """
        if self.hp is None:
            raise UsageError(
                "the base model of this adapter is unknown; use nbllama.save_adapter(path, adapter,"
                " model)"
            )
        return save_adapter(file_name("path", path), self, self.hp)
