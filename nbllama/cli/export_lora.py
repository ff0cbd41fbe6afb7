"""The program: `python -m nbllama.export_lora`, which merges adapters into a model.

Options: `nbllama.options.merge`. What is written: `nbllama.export.rewrite`.
"""

from __future__ import annotations

from functools import partial

from nbllama.kernels.cores import use_threads
from nbllama.options.merge import parse_export
from nbllama.system.program import run_program


def _run(words: list[str]) -> None:
    export = parse_export(words)
    from nbllama.export.file_types import file_type

    options = export.options
    kind = None if options.outtype.lower() == "same" else file_type(options.outtype)
    use_threads(options.threads)
    from nbllama.arch import hparams_from_gguf
    from nbllama.cli.lora_files import load_adapters
    from nbllama.cli.merge import Progress, note_parts, print_result
    from nbllama.cli.scores import read_utf8
    from nbllama.evaluate.merge_sample import print_change
    from nbllama.export.merge import merge, merged_types
    from nbllama.gguf_io import open_gguf
    from nbllama.system.output_file import prepare_output
    from nbllama.system.replaced import GGUF

    text = read_utf8(options.sample) if options.sample else None
    with open_gguf(options.model_base) as f:
        hp = hparams_from_gguf(f)
        prepare_output(options.model_out, export.inputs, GGUF)
        note_parts(f, options.model_out)
        shapes = {name: info.shape for name, info in f.tensors.items()}
        parts = load_adapters(export.adapters, hp, shapes, print)
        types, lines = merged_types(f, hp, parts, kind)
        print("\n".join(lines), end="\n" if lines else "")
        with Progress() as progress:
            changes = merge(f, options.model_out, parts, types, kind=kind, progress=progress)
    print_result(options.model_out, changes, progress.seconds)
    if options.compare:
        print_change(options.model_base, options.model_out, parts, text, name=options.sample)


main = partial(run_program, _run)
