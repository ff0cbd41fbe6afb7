"""Options for the base model: arrays to dump, and constants that override the model file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from nbllama.options.file_names import File
from nbllama.options.parser import option
from nbllama.options.values import Dumped, Real, Text

_inside = partial(option, "Dumping intermediate values")
_model = partial(option, "Model")


@dataclass(frozen=True)
class ModelOptions:
    """Options for arrays to dump, and for constants that override the model file."""

    dump: tuple[str, ...] = _inside(
        Dumped(), (), "arrays to dump, by iteration and name, such as 1:kq_soft_max-* or "
        "10-12:*.grad; can be repeated", shown_default="none", many=True,
    )  # fmt: skip
    dump_out: str = _inside(
        File(),
        "dump-ITERATION.npz",
        "output file for --dump; ITERATION is replaced by the iteration number",
        file="writes",
    )

    norm_rms_eps: float | None = _model(
        Real(0, 1, above=True), None, "epsilon of the RMS norms", shown_default="from the model"
    )
    rope_freq_base: float | None = _model(
        Real(1, 1e12), None, "base frequency of RoPE", shown_default="from the model"
    )
    rope_freq_scale: float | None = _model(
        Real(1e-6, 1e6),
        None,
        "scaling factor for RoPE positions; 1 / n makes the context n times as long",
        shown_default="from the model",
    )
    pre: str | None = _model(
        Text("NAME"),
        None,
        "pre-tokenizer for a BPE vocabulary, if the one named in the file is not supported",
        shown_default="the model's tokenizer.ggml.pre",
    )

    def constants(self) -> dict[str, Any]:
        """Return the constants that were given, named as in `nbllama.model.load_model`."""
        values = {
            "rms_eps": self.norm_rms_eps,
            "rope_freq_base": self.rope_freq_base,
            "rope_freq_scale": self.rope_freq_scale,
            "pre": self.pre,
        }
        return {name: value for name, value in values.items() if value is not None}
