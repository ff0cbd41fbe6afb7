"""PEFT's `adapter_config.json`: the keys that determine the effect of an adapter."""

from __future__ import annotations

import codecs
import json
import re
from dataclasses import dataclass
from typing import Any

from nbllama.adapter.hf_names import bare_module
from nbllama.adapter.safetensors import parse_json
from nbllama.adapter.source import Path, Source
from nbllama.adapter.stored import MAX_RANK, refuse
from nbllama.checkpoint.stored import ALPHAS
from nbllama.errors import CheckpointError, shown

_MAX_BYTES = 4 << 20
_NAME = re.compile(r"\^?[A-Za-z0-9_]+(?:\\?\.(?:[A-Za-z0-9_]+|\[0-9\]\+))*\$?")
# Initialisations that leave the base model unchanged; others (PiSSA, OLoRA, ...) change it before
# training.
_HARMLESS_START = (None, True, False, "gaussian", "eva", "orthogonal")
_SWITCHES = ("use_rslora", "use_dora", "fan_in_fan_out", "lora_bias")
_MUST_BE_OFF = {
    "use_dora": "DoRA, which no other format supports: merge the adapter with PEFT",
    "fan_in_fan_out": "transposed base matrices are not supported",
    "modules_to_save": "whole tensors in addition to the pairs, which no other format supports",
    "lora_bias": "biases in lora_B, which no other format supports",
    "layer_replication": "replicated layers are not supported",
    "alora_invocation_tokens": "an activated LoRA (aLoRA), which is not supported",
    "trainable_token_indices": "embeddings of individual tokens, which no other format supports",
    "target_parameters": "pairs for parameters instead of modules are not supported",
}


@dataclass(frozen=True)
class Config:
    """The rank and alpha of each module, and how they determine the scale."""

    r: int
    alpha: float
    ranks: dict[str, int]
    alphas: dict[str, float]
    use_rslora: bool

    def of(self, module: str) -> tuple[int, float]:
        """Return the rank and alpha for a module path, matched as in PEFT's `get_pattern_key`."""
        return _lookup(self.ranks, module, self.r), _lookup(self.alphas, module, self.alpha)


def _lookup(pattern: dict[str, Any], module: str, default: Any) -> Any:
    """Return the value for the first name that equals the module's path or the end of it."""
    for name, value in pattern.items():
        plain = bare_module(name.removeprefix("^"))
        whole = bare_module(module)
        if whole == plain or (not name.startswith("^") and whole.endswith("." + plain)):
            return value
    return default


def read_config(path: Path) -> Config:
    """Read `adapter_config.json`.

    Raises `CheckpointError` if the file is missing or damaged, or requires more than LoRA pairs.
    """
    try:
        with Source(path) as f:
            if f.size > _MAX_BYTES:
                raise f.error("file", f"{f.size} bytes, but the limit is {_MAX_BYTES}")
            text = f.take(f.size, "file").removeprefix(codecs.BOM_UTF8)
            found = parse_json(f, text, "file")
    except FileNotFoundError as e:
        raise refuse(path, "file", "is missing") from e
    if found.get("peft_type") != "LORA":
        raise refuse(path, "key 'peft_type'", f"{shown(found.get('peft_type'))}, but must be LORA")
    for key in _SWITCHES:
        _check_switch(path, key, found.get(key))
    for key, why in _MUST_BE_OFF.items():
        if found.get(key):
            raise refuse(path, f"key '{key}'", why)
    if found.get("bias", "none") != "none":
        raise refuse(path, "key 'bias'", "trained biases, which no other format supports")
    start = found.get("init_lora_weights")
    if not isinstance(start, bool | str | None) or start not in _HARMLESS_START:
        raise refuse(
            path,
            "key 'init_lora_weights'",
            f"{shown(start)}: this initialisation changes the base model, and the adapter fits "
            "only the changed model",
        )
    return Config(
        _rank(path, "r", found.get("r")),
        _alpha(path, "lora_alpha", found.get("lora_alpha")),
        {_name(path, n): _rank(path, n, x) for n, x in _map(path, found, "rank_pattern")},
        {_name(path, n): _alpha(path, n, x) for n, x in _map(path, found, "alpha_pattern")},
        bool(found.get("use_rslora")),
    )


def _map(path: Path, found: dict[str, Any], key: str) -> Any:
    value = found.get(key) or {}
    if not isinstance(value, dict):
        raise refuse(path, f"key '{key}'", "not an object")
    return value.items()


def _name(path: Path, name: str) -> str:
    """Convert a pattern to a module name.

    PEFT accepts any regular expression, but only the forms that are used in practice are supported.
    """
    if not _NAME.fullmatch(name):
        raise refuse(
            path, f"pattern '{shown(name)}'", "a regular expression; only names are supported"
        )
    # "[0-9]+" matches every expert of a block; replaced with `hf_names.EXPERT`
    return name.removesuffix("$").replace("\\.", ".").replace("[0-9]+", "{e}")


def _check_switch(path: Path, key: str, x: Any) -> None:
    """Refuse a switch that is not true, false or null; in Python, the string "false" is truthy."""
    if x is not None and not isinstance(x, bool):
        raise _wrong(path, key, x, "true or false")


def _rank(path: Path, key: str, x: Any) -> int:
    if type(x) is not int or not 1 <= x <= MAX_RANK:
        raise _wrong(path, key, x, f"a whole number from 1 to {MAX_RANK}")
    return x


def _alpha(path: Path, key: str, x: Any) -> float:
    if type(x) not in (int, float) or not ALPHAS[0] < x < ALPHAS[1]:
        raise _wrong(path, key, x, f"a number above {ALPHAS[0]:g} and below {ALPHAS[1]:g}")
    return float(x)


def _wrong(path: Path, key: str, x: Any, allowed: str) -> CheckpointError:
    """Return the error for a value that is not `allowed`; the message says if it is a string."""
    if isinstance(x, list | dict):
        value = "a list" if isinstance(x, list) else "an object"
    else:
        value = shown(json.dumps(x, ensure_ascii=False))
    if isinstance(x, str):
        value, allowed = f"the text {value}", f"{allowed}, without quotes"
    return refuse(path, f"key '{shown(key)}'", f"{value}, but must be {allowed}")
