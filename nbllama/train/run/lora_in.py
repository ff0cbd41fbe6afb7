"""Options whose values come from the `--lora-in` adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from nbllama.adapter.file import load_adapter
from nbllama.errors import CheckpointError, UsageError, shown
from nbllama.lora.pairs import block_of
from nbllama.lora.slots import EVERY_SLOT, slot_of
from nbllama.options.finetune.table import Options
from nbllama.train.run.layers import as_text, blocks

if TYPE_CHECKING:
    from nbllama.lora.pairs import Adapter
    from nbllama.model.passes import Model


def started_from(
    options: Options, model: Model, say: Callable[[str], None] | None = None
) -> tuple[Options, Adapter]:
    """Read the adapter, and set the options for ranks, alpha and layers to its values.

    Raises `UsageError` if the file does not exist or the command line specifies different values,
    and `CheckpointError` if the adapter does not match the model.
    """
    try:
        adapter = load_adapter(options.lora_in, model.hp, model.shapes, say)
    except FileNotFoundError as e:
        raise UsageError(f"--lora-in {shown(options.lora_in, 400)}: no such file or folder") from e
    n_layer = model.hp.n_layer
    found = {block_of(name) for name in adapter.pairs} - {-1}
    layers = as_text(found, n_layer) if found else "all"
    given = options.lora_layers
    if given is not None and as_text(blocks(given, n_layer), n_layer) != layers:
        raise UsageError(
            f"--lora-layers {shown(given)}: the adapter {shown(options.lora_in)} matches "
            f"--lora-layers {layers}; leave the option out"
        )
    if options.rslora:
        raise UsageError(
            "--rslora: the --lora-in adapter already has a scale; leave the option out"
        )
    return replace(completed_by(options, adapter), lora_layers=layers), adapter


def completed_by(options: Options, adapter: Adapter) -> Options:
    """Return options filled in with the rank and alpha of `adapter`.

    Raises `UsageError` if the command line specifies different values. Raises `CheckpointError` if
    tensors of the same kind have different ranks, because a run and its checkpoints store one rank
    per kind.
    """
    name = shown(options.lora_in)
    found: dict[str, object] = dict.fromkeys((f"rank_{slot.name}" for slot in EVERY_SLOT), 0)
    for tensor, pair in adapter.pairs.items():
        slot = slot_of(tensor)
        if slot is None:
            raise KeyError(tensor)
        field = f"rank_{slot[0].name}"
        if found[field] not in (0, pair.rank):
            raise CheckpointError(
                f"{name}: the pairs for {slot[0].tensor} have ranks {found[field]} and "
                f"{pair.rank}; training requires the same rank in all blocks"
            )
        found[field] = pair.rank
    experts = {found[f"rank_{slot.name}"] for slot in EVERY_SLOT if slot.kind == "experts"}
    if options.rank_experts is not None and len(experts) == 1:
        found["rank_experts"] = experts.pop()
    found |= {"lora_r": adapter.lora_r, "lora_alpha": adapter.alpha}
    for field, value in found.items():
        given = getattr(options, field)
        if given is not None and given != value:
            raise UsageError(
                f"--{field.replace('_', '-')} {given:g}: the adapter {name} has {value:g};"
                " leave the option out"
            )
    return replace(options, **found)  # type: ignore[arg-type]
