"""The values that a resumed run reads from its checkpoint, and the values that must match."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nbllama.checkpoint.identity import Identity, check_fits, model_fingerprint, model_numbers
from nbllama.errors import CheckpointError, shown
from nbllama.lora.slots import EVERY_SLOT, SLOT_BY_NAME
from nbllama.options.finetune.table import OPTIONS, Options
from nbllama.options.parser import Option
from nbllama.train.run.settings import Settings

if TYPE_CHECKING:
    from nbllama.checkpoint.state import TrainState
    from nbllama.data import Dataset
    from nbllama.model.passes import Model
    from nbllama.train.run.judging import Judging

_SAVED = {o.dest: o for o in OPTIONS if o.saved is not None}
# Values to use for checkpoints that are older than the option.
_BEFORE = {name: o.without for name, o in _SAVED.items() if o.without is not None}
_MAY_CHANGE = {
    key for name, o in _SAVED.items() if o.saved and o.saved.may_change
    for key in (name, o.saved.key or name)
}  # fmt: skip
_NONE = ("eval_every", "template_date")  # 0 and "" mean no value
_NORMS = [slot.name for slot in EVERY_SLOT if slot.kind == "norm"]


def completed(options: Options, state: TrainState | None) -> Options:
    """Fill in missing options with values from the checkpoint."""
    if state is None:
        return options
    same = state.identity
    stored: dict[str, Any] = {}
    for name, o in _SAVED.items():
        key = (o.saved.key or name) if o.saved and o.saved.taken else ""
        if key in same.settings:
            stored[name] = _value(options.checkpoint_in or "", o, key, same.settings[key])
    if options.lora_dropout:  # adding dropout requires --force, and prompts are then not shared
        stored.pop("share_prompts", None)
    if not stored.get("eval_every"):
        stored.pop("eval_every", None)  # 0 (nothing to evaluate) is not a valid option value
    # --lora-r is the default for all ranks except the ranks of norms.
    slots = same.ranks if options.lora_r is None else _NORMS
    if options.rank_experts is not None:  # the default for the ranks of all expert tensors
        slots = [slot for slot in slots if SLOT_BY_NAME[slot].kind != "experts"]
    stored |= {f"rank_{slot}": same.ranks[slot] for slot in slots if slot in same.ranks}
    stored |= {"lora_r": same.lora_r}
    if not state.old:
        stored.setdefault("lora_alpha", same.lora_alpha)
    left = {name: value for name, value in stored.items() if getattr(options, name) is None}
    if options.seed < 0 and not state.old and not options.force_reshuffle:
        left["seed"] = state.seed
    return replace(options, **left)


def _value(path: str, o: Option, key: str, found: Any) -> Any:
    """Return the stored value of an option; the value must be valid on the command line."""
    if not found and o.dest in _NONE:
        return found
    try:
        if o.value is None:
            return {True: True, False: False}[found]
        return o.value.parse(str(found))
    except (KeyError, ValueError):
        raise CheckpointError(
            f"{shown(path, 400)}: key 'nbllama.settings.{shown(key)}': {shown(found)} is not a "
            f"valid value for {o.names[0]}"
        ) from None


def identity(
    settings: Settings,
    model: Model,
    data: Dataset,
    validation: Dataset | None,
    *,
    preferences: Judging | None = None,
) -> Identity:
    """Return the values that must be the same in this run and its checkpoints."""
    return Identity(
        arch=model.hp.arch,
        lora_r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        ranks=settings.ranks,
        base=model_fingerprint(model.gguf),
        data=data.fingerprint,
        model=model_numbers(model.hp),
        settings=settings.saved()
        | {"validation_data": validation.fingerprint[:16] if validation is not None else ""}
        | (preferences.identity() if preferences is not None else {}),
    )


def check_resume(
    options: Options,
    state: TrainState,
    wanted: Identity,
    n_samples: int,
    *,
    new_decay: bool = False,
) -> list[str]:
    """Raise `CheckpointError` unless a run with identity `wanted` can resume from the checkpoint.

    Returns messages about the differences that `--force` permitted. `new_decay` says whether this
    run starts a new decay (`nbllama.train.run.decay`).

    A checkpoint from the old tool stores only the sizes of its base model and the number of
    samples.
    """
    path, found = options.checkpoint_in or "", state.identity
    free = _MAY_CHANGE | ({"seed"} if options.force_reshuffle else set())
    free |= {"cos_decay_steps"} if new_decay else set()
    if options.packing:  # with packing, `share_prompts` affects which samples are in a batch
        free -= {"share_prompts"}
    settings = {k: v for k, v in {**_BEFORE, **found.settings}.items() if k not in free}
    found = replace(found, settings=settings)
    if not state.old:
        return check_fits(path, found, wanted, force=options.force)
    found = replace(found, lora_r=wanted.lora_r, lora_alpha=wanted.lora_alpha, settings={})
    lines = check_fits(path, found, wanted, force=options.force)
    if state.rng_state and state.n_samples != n_samples and not options.force_reshuffle:
        line = f"the training data changed from {state.n_samples} to {n_samples} samples"
        if not options.force:
            raise CheckpointError(
                f"{shown(path, 400)}: {line}; use the same data and options (--ctx and the sample "
                "options), or pass --force-reshuffle to restart the epoch"
            )
        lines.append(line)
    return lines
