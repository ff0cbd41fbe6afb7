"""The program `python -m nbllama.quantize IN OUT TYPE`.

The options are in `nbllama.options.merge` and the types in `nbllama.export.file_types`;
`nbllama.export.rewrite` writes the file.
"""

from __future__ import annotations

from functools import partial

from nbllama.errors import UsageError, shown
from nbllama.export.file_types import file_type, tensor_types
from nbllama.kernels.cores import use_threads
from nbllama.options.merge import parse_quantize
from nbllama.system.program import run_program


def _run(words: list[str]) -> None:
    asked = parse_quantize(words)
    kind = file_type(asked.type)
    use_threads(asked.threads)
    from nbllama.arch import hparams_from_gguf
    from nbllama.cli.merge import Progress, note_parts, prepare_model, print_result
    from nbllama.export.rewrite import IDS, metadata_for, requantised, rewrite
    from nbllama.gguf_io import open_gguf

    with open_gguf(asked.source) as f:
        hp = hparams_from_gguf(f)
        shapes = {name: info.shape for name, info in f.tensors.items()}
        names = tensor_types(
            kind,
            shapes,
            n_layer=hp.n_layer,
            n_head=hp.n_head,
            n_head_kv=hp.n_head_kv,
            pure=asked.options.pure,
        )
        types = {name: IDS[chosen] for name, chosen in names.items()}
        if not asked.options.allow_requantize and (name := requantised(f, types)):
            raise UsageError(
                f"{shown(asked.source, 400)}: {shown(name)} is already quantised; start from an "
                "F32, F16 or BF16 model, or pass --allow-requantize"
            )
        prepare_model(asked.target, [asked.source])
        note_parts(f, asked.target)
        with Progress() as progress:
            changes = rewrite(
                f, asked.target, types, {}, metadata=metadata_for(f, kind.id), progress=progress
            )
    print_result(asked.target, changes, progress.seconds)


main = partial(run_program, _run)
