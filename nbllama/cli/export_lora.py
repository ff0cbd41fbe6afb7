"""The program `python -m nbllama.export_lora`, which merges adapters into a model.

The options are in `nbllama.options.merge`, and `nbllama.export.rewrite` writes the file.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from nbllama.errors import NbllamaError, UsageError
from nbllama.kernels.cores import use_threads
from nbllama.options.merge import parse_export
from nbllama.system.program import run_program

_UNMERGED = "use the adapters without merging (--lora), or merge with --outtype q8_0, f16 or f32"


def _run(words: list[str]) -> None:
    export = parse_export(words)
    from nbllama.export.file_types import file_type

    options = export.options
    word = options.outtype.lower()
    auto, kind = word == "auto", None if word in ("same", "auto") else file_type(options.outtype)
    use_threads(options.threads)
    from nbllama.arch import hparams_from_gguf
    from nbllama.cli.calibration import check_calibrate, find_sample
    from nbllama.cli.lora_files import load_adapters
    from nbllama.cli.merge import Progress, note_parts, prepare_model, print_result
    from nbllama.cli.scores import read_utf8
    from nbllama.evaluate.merge_sample import TOO_MUCH, print_change
    from nbllama.export.auto import plan, spool_beside
    from nbllama.export.calibrated import Rounder, nearest_line, rounds
    from nbllama.export.inputs import BlockInputs
    from nbllama.export.merge import merge, merged_types
    from nbllama.export.rewrite import Whole
    from nbllama.gguf_io import open_gguf
    from nbllama.lora.mix import mix
    from nbllama.model.passes import Model

    text = read_utf8(options.sample) if options.sample else None
    check_calibrate(options.calibrate)
    with open_gguf(options.model_base) as f, ExitStack() as stack:
        hp = hparams_from_gguf(f)
        prepare_model(options.model_out, export.inputs)
        note_parts(f, options.model_out)
        shapes = {name: info.shape for name, info in f.tensors.items()}
        parts = load_adapters(export.adapters, hp, shapes, print)
        types, lines = merged_types(f, hp, parts, kind)
        if not auto:
            print("\n".join(lines), end="\n" if lines else "")
        rounder = sample = None
        whole: Whole | None = None
        if auto or any(rounds(name, type_id) for name, type_id in types.items()):
            model = Model(f, hp)
            sample = find_sample(export, model)
            if sample is not None:
                whole = rounder = Rounder(BlockInputs(model, mix(parts), sample.batches))
        elif options.calibrate:
            print(
                "note: --calibrate is not used: the merged model has no quantised matrix whose "
                "rounding depends on data"
            )
        if auto:
            if rounder is None:
                raise UsageError("--outtype auto requires a sample: pass --calibrate DATA")
            whole = spool = stack.enter_context(spool_beside(options.model_out))
            with Progress() as progress:
                chosen = plan(f, mix(parts), rounder, spool, progress=progress)
            print(chosen.line())
            types |= chosen.types
        with Progress() as progress:
            changes = merge(
                f, options.model_out, parts, types, kind=kind, progress=progress, whole=whole
            )
    print_result(options.model_out, changes, progress.seconds)
    if sample is not None and (line := nearest_line(mix(parts).pairs, types)):
        print(line)
    if rounder is not None and not auto:
        print(
            f"rows that keep the base model's scales: {rounder.kept}; "
            f"rows with new scales: {rounder.renewed}"
        )
    if not options.compare:
        return
    change = print_change(
        options.model_base, options.model_out, parts, text, name=options.sample,
        held=sample.held if sample else (),
        advice=_UNMERGED if sample else f"pass --calibrate DATA, or {_UNMERGED}",
    )  # fmt: skip
    if change is not None and change.lost > TOO_MUCH and not options.force:
        raise NbllamaError(
            f"{options.model_out} was written, but {change.lost:.0%} of the adapters' effect is "
            "lost; pass --force to accept this"
        )


main = partial(run_program, _run)
