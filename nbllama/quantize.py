"""The program: `python -m nbllama.quantize IN OUT TYPE`.

Options: `nbllama.cli.merge_options`. Types: `nbllama.mixes`. What is written: `nbllama.rewrite`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from nbllama.cli.cores import use_threads
from nbllama.cli.merge_options import parse_quantize
from nbllama.cli.run import run_program
from nbllama.errors import UsageError, shown
from nbllama.mixes import file_type, tensor_types


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit code (see `nbllama.errors`)."""
    return run_program(_run, argv)


def _run(words: list[str]) -> None:
    asked = parse_quantize(words)
    kind = file_type(asked.type)
    use_threads(asked.threads)
    from nbllama.arch import hparams_from_gguf
    from nbllama.cli.merge import Progress, print_result
    from nbllama.cli.output_file import prepare_output
    from nbllama.gguf_io import open_gguf
    from nbllama.rewrite import IDS, metadata_for, requantised, rewrite

    with open_gguf(asked.source) as f:
        hp = hparams_from_gguf(f)
        shapes = {name: info.shape for name, info in f.tensors.items()}
        names = tensor_types(
            kind, shapes, hp.n_layer, hp.n_head, hp.n_head_kv, pure=asked.options.pure
        )
        types = {name: IDS[chosen] for name, chosen in names.items()}
        if not asked.options.allow_requantize and (name := requantised(f, types)):
            raise UsageError(
                f"{shown(asked.source, 400)}: {shown(name)} is quantised already; start from an"
                " F32, F16 or BF16 model, or give --allow-requantize"
            )
        prepare_output(asked.target, [asked.source])
        with Progress() as progress:
            changes = rewrite(f, asked.target, types, {}, metadata_for(f, kind.id), progress)
    print_result(asked.target, changes, progress.seconds)


if __name__ == "__main__":
    sys.exit(main())
