"""`--only-write-lora`: write the adapter in a checkpoint to a file, without training."""

from __future__ import annotations

from dataclasses import replace

from nbllama.adapter.file import adapter_notes
from nbllama.adapter.savable import Adapter
from nbllama.checkpoint.identity import Identity, check_fits, model_fingerprint, model_numbers
from nbllama.errors import CheckpointError, UsageError, shown
from nbllama.generation.model import Model
from nbllama.options.finetune.table import Options
from nbllama.train.run.continued import find_checkpoint
from nbllama.train.run.outputs import Outputs
from nbllama.train.run.result import Run
from nbllama.train.run.screen import Screen
from nbllama.train.run.session import base_model


def write_lora(options: Options, outputs: Outputs, ui: Screen, given: Model | None = None) -> Run:
    """Write the adapter in `--checkpoint-in` under the iteration number and as LATEST.

    A checkpoint from the old tool does not contain r, which only affects the scale. If `--lora-r`
    is not given, the most frequent rank in the checkpoint is used as r.

    Raises `UsageError` if the checkpoint or the output name is missing, and `CheckpointError` if
    the checkpoint belongs to a different base model.
    """
    path = options.checkpoint_in or ""
    if not outputs.adapter:
        raise UsageError("--only-write-lora: --lora-out is empty; name the file to write")
    found = find_checkpoint(options, ui.note) if path else None
    if found is None:
        raise UsageError(f"--only-write-lora: there is no checkpoint {shown(path)}")
    path, state = found.path, found.state
    model = base_model(options, given)
    same = state.identity
    base, numbers = model_fingerprint(model.gguf), model_numbers(model.hp)
    wanted = Identity(
        arch=model.hp.arch, lora_r=same.lora_r, lora_alpha=same.lora_alpha, ranks=same.ranks,
        base=base, model=numbers,
    )  # fmt: skip
    for line in check_fits(path, same, wanted, force=options.force):
        ui.note(f"written because of --force: {line}")
    if state.old and options.lora_r is not None:
        alpha = float(options.lora_r)
        state.adapter = replace(state.adapter, lora_r=options.lora_r, alpha=alpha)
    if problem := state.adapter.misfit(model.shapes):
        raise CheckpointError(f"{shown(path, 400)}: {problem}")
    for line in adapter_notes(state.adapter, model.hp, outputs.adapter):
        ui.note(line)
    outputs.save_adapter(state, model.hp)
    ui.close(outputs.written())
    adapter = Adapter.of(state.adapter, model.hp)
    paths = outputs.paths
    return Run(adapter, model, paths=paths, iteration=state.iteration, last=state.iteration)
