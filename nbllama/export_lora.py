"""The program: `python -m nbllama.export_lora`, which merges adapters into a model.

Options: `nbllama.cli.merge_options`. What is written: `nbllama.rewrite`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nbllama.cli.merge_options import Export, parse_export
from nbllama.cli.run import run_program
from nbllama.cli.settings import use_threads

if TYPE_CHECKING:
    from nbllama.arch import Hparams
    from nbllama.gguf_io import GGUFFile
    from nbllama.rewrite import Deltas


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit code (see `nbllama.errors`)."""
    words = list(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        _run(parse_export(words))
        return 0

    return run_program(run, "--debug" in words)


def _run(export: Export) -> None:
    from nbllama.mixes import file_type

    options = export.options
    kind = None if options.outtype.lower() == "same" else file_type(options.outtype)
    use_threads(options.threads)
    from nbllama.arch import hparams_from_gguf
    from nbllama.cli.merge import Progress, prepare_output, print_result
    from nbllama.gguf_io import open_gguf
    from nbllama.mixes import tensor_types
    from nbllama.rewrite import IDS, kept_types, metadata_for, rewrite

    with open_gguf(options.model_base) as f:
        hp = hparams_from_gguf(f)
        prepare_output(options.model_out, [options.model_base, *(a for a, _ in export.adapters)])
        deltas = merged_deltas(f, hp, export.adapters)
        if kind is None:
            types, lines = kept_types(f, deltas)
            print("\n".join(lines), end="\n" if lines else "")
        else:
            shapes = {name: info.shape for name, info in f.tensors.items()}
            names = tensor_types(kind, shapes, hp.n_layer, hp.n_head, hp.n_head_kv)
            types = {name: IDS[chosen] for name, chosen in names.items()}
        progress = Progress()
        try:
            metadata = metadata_for(f, kind.id if kind else None)
            changes = rewrite(f, options.model_out, types, deltas, metadata, progress)
        finally:
            seconds = progress.close()
    print_result(options.model_out, changes, seconds)


def merged_deltas(f: GGUFFile, hp: Hparams, adapters: Sequence[tuple[str, float]]) -> Deltas:
    """By tensor name, what the adapters add, as `nbllama.rewrite.rewrite` takes it.

    Raises `CheckpointError` for an adapter of another base, `UsageError` for one that is missing.
    """
    from nbllama.cli.lora_files import load_adapters

    shapes = {name: info.shape for name, info in f.tensors.items()}
    deltas: dict[str, list] = {}
    for adapter, scale in load_adapters(adapters, hp, shapes, print):
        for name, pair in adapter.pairs.items():
            deltas.setdefault(name, []).append((scale * adapter.scale, pair))
    return deltas


if __name__ == "__main__":
    sys.exit(main())
