"""The options of `python -m nbllama.finetune`: one table that makes parser, help and docs.

Names and meanings are those of the old llama.cpp `finetune`. A default of None means "not given":
`nbllama.cli.settings.resolve` fills it in from the kind of training data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any

from nbllama.cli.common_options import debug_option, threads_option
from nbllama.cli.config import config_words
from nbllama.cli.data_options import (
    chat_template_option,
    data_columns_option,
    data_format_option,
    on_long_option,
    skip_bad_option,
    template_date_option,
    train_on_prompt_option,
)
from nbllama.cli.escapes import unescape
from nbllama.cli.parser import (
    Choice,
    Dumped,
    Real,
    Size,
    Text,
    Whole,
    Words,
    markdown,
    option,
    parse_into,
    read,
    table,
)
from nbllama.errors import UsageError

OPTIMISERS = ("adamw", "sgd", "lion")
SCHEDULES = ("constant", "linear", "cosine", "wsd")
PROG = "python -m nbllama.finetune"
ABOUT = """Train a LoRA adapter on a quantised GGUF model, on the CPU.

Defaults depend on the training data: plain text, or records such as chats ("chat" below). The
ones in force are printed before training starts."""
EPILOG = """In --lora-out and --checkpoint-out, ITERATION stands for the iteration's number; each
save is also written under the same name with LATEST (--pattern-fn-it and --fn-latest give other
words). Training continues from --checkpoint-in
if that file exists.

exit codes: 0 done, 1 failure, 2 bad usage or bad file, 3 path that cannot be written, 4 not
enough memory, 5 checkpoint that does not fit, 6 last save failed, 7 the run diverged, 130 and
143 stopped by SIGINT and SIGTERM"""

# What people type who come from other trainers.
FAMILIAR = {
    "--batch-size": "--batch",
    "--ctx-size": "--ctx",
    "--iters": "--adam-iter",
    "--early-stopping-patience": "--early-stop",
    "--eval-steps": "--eval-every",
    "--lr-scheduler-type": "--lr-schedule",
    "--max-grad-norm": "--adam-gclip",
    "--model": "--model-base",
    "--optim": "--optimizer",
    "--use-rslora": "--rslora",
    "-m": "--model-base",
    "--rank": "--lora-r",
    "--resume": "--checkpoint-in",
    "--warmup-steps": "--warmup",
}

_files = partial(option, "Files")
_run = partial(option, "Run")
_data = partial(option, "Length of the run and batches")
_text = partial(option, "Samples of plain text")
_lora = partial(option, "LoRA")
_adam = partial(option, "Optimiser")
_rate = partial(option, "Learning rate")
_val = partial(option, "Validation and samples")
_stop = partial(option, "Early end")
_model = partial(option, "Model")
_inside = partial(option, "Looking inside")
_old = partial(option, "Coming from the old finetune")

_RANK = Whole(0, 65536)
_SEVEN = "--lora-r"
_NORM = "0; 1 if --lora-out ends in .bin, or with --compat"
_ENDS = "--lora-r for plain text, 0 for chat"


@dataclass(frozen=True)
class Options:
    """A parsed command line; None where an option was not given and has no fixed default."""

    model_base: str = _files(
        Text(), "", "base model to train on, a GGUF file", shown_default="none, must be given"
    )
    train_data: str = _files(
        Text(),
        "shakespeare.txt",
        "training data: plain text or records (JSON lines and others), or a folder with"
        " train.jsonl",
    )
    checkpoint_in: str = _files(
        Text(), "checkpoint.gguf", "continue from this checkpoint; a missing file is a fresh start"
    )
    lora_in: str = _files(
        Text(),
        "",
        "start from this adapter (.gguf, .bin or a PEFT folder) with new moments, unless there is"
        " a checkpoint to continue",
        shown_default="a new adapter",
    )
    checkpoint_out: str = _files(
        Text(), "checkpoint-ITERATION.gguf", "where checkpoints are saved; empty: nowhere"
    )
    lora_out: str = _files(
        Text(),
        "ggml-lora-ITERATION-f32.gguf",
        "where adapters are saved: .gguf for llama.cpp of today, .bin for that of 2023, a name with"
        " / at its end for PEFT; empty: nowhere",
    )
    only_write_lora: bool = _files(
        None, False, "write the adapter of --checkpoint-in to --lora-out, and stop"
    )
    pattern_fn_it: str = _files(
        Text("TEXT"),
        "ITERATION",
        "text in the names of outputs in whose place the iteration's number is put",
    )
    fn_latest: str = _files(
        Text("TEXT"), "LATEST", "text that is put there in the name of the newest file"
    )
    save_every: int = _files(
        Whole(-(2**31)), 10, "iterations between two saves; 0 or less: only at the end"
    )
    keep_last: int = _files(
        Whole(), 0, "numbered checkpoints to keep, older ones are deleted", shown_default="all"
    )
    log: str = _files(
        Text(), "", "append a line of JSON per iteration to this file", shown_default="off"
    )
    report: str = _files(
        Text(),
        "",
        "write a page about the run; without --log, the log goes beside it",
        shown_default="off",
    )
    card: bool = _files(
        None, False, "at the end write a model card and an Ollama Modelfile beside the adapter"
    )
    tensorboard: str = _files(
        Text("FOLDER"), "", "write TensorBoard event files there", shown_default="off"
    )
    config: str = _files(
        Text(),
        "",
        "options from a YAML file, name: value; those of the command line win",
        shown_default="none",
    )

    threads: int | None = threads_option()
    seed: int = _run(
        Whole(-1, 2**63 - 1),
        -1,
        "seed of the adapter's start and of the data order; -1: a new one, which is printed",
        also=["-s"],
    )
    use_checkpointing: bool = _run(
        None,
        True,
        "gradient checkpointing: less memory, more time",
        off=["--no-checkpointing"],
        shown_default="on",
    )
    activation_memory: int | None = _run(
        Size(),
        None,
        "keep the activations of as many blocks as fit in SIZE bytes (such as 750M) and compute "
        "the others twice; takes the place of --use-checkpointing",
        shown_default="off",
    )
    dry_run: bool = _run(None, False, "print the forecast of time and memory, then stop")
    force: bool = _run(None, False, "continue a checkpoint although model, data or options differ")
    list_archs: bool = _run(
        None, False, "print the architectures that work and what was checked, then stop"
    )
    debug: bool = debug_option()

    adam_iter: int | None = _data(
        Whole(1),
        None,
        "iterations of this run, added to those of the checkpoint",
        shown_default="256 for plain text, no limit for chat or with --epochs",
    )
    epochs: int | None = _data(
        Whole(-(2**31)),
        None,
        "passes over the data in this run; 0 or less: no limit",
        shown_default="no limit for plain text, 3 for chat",
    )
    batch: int = _data(
        Whole(1, 65536),
        8,
        "samples of one forward and backward pass; with --packing, --ctx times so many tokens",
        also=["-b"],
    )
    grad_acc: int = _data(Whole(1, 65536), 1, "batches of one iteration")
    ctx: int | None = _data(
        Whole(1, 2**24),
        None,
        "longest sample, in tokens",
        also=["-c"],
        shown_default="128 for plain text, 512 for chat",
    )

    data_format: str | None = data_format_option()
    data_columns: str = data_columns_option()
    chat_template: str = chat_template_option()
    template_date: str | None = template_date_option()
    train_on_prompt: bool = train_on_prompt_option()
    on_long: str = on_long_option()
    skip_bad: bool = skip_bad_option()
    packing: bool = option(
        "Training data",
        None,
        False,
        "fill each batch with whole records up to --batch x --ctx tokens, whatever their number",
        off=["--no-packing"],
    )

    sample_start: str = _text(
        Words(),
        "",
        "text that opens a sample; empty: a sample begins at every token",
        shown_default="empty",
    )
    include_sample_start: bool = _text(
        None, False, "samples begin with --sample-start, not behind it"
    )
    escape: bool = _text(
        None, False, r"read \n \r \t \' \" \\ and \xHH in --sample-start as characters"
    )
    overlapping_samples: bool = _text(
        None, False, "samples do not end where the next one is opened"
    )
    fill_with_next_samples: bool = _text(
        None, False, "where a sample ends before --ctx tokens, the next ones follow in the same row"
    )
    separate_with_eos: bool = _text(
        None,
        False,
        "EOS between samples of a row, with --fill-with-next-samples",
        off=["--no-separate-with-eos"],
    )
    separate_with_bos: bool = _text(
        None,
        True,
        "BOS between samples of a row, with --fill-with-next-samples",
        off=["--no-separate-with-bos"],
        shown_default="on",
    )
    sample_random_offsets: bool = _text(
        None, False, "the first sample of a row begins at a random token of it"
    )
    force_reshuffle: bool = _text(
        None, False, "a new order of samples from --seed, also when a checkpoint is continued"
    )

    dump: tuple[str, ...] = _inside(
        Dumped(), (), "write arrays of an iteration by name: 1:kq_soft_max-*, 10-12:*.grad; may be"
        " given several times", shown_default="none", many=True,
    )  # fmt: skip
    dump_out: str = _inside(
        Text(), "dump-ITERATION.npz", "file of --dump; ITERATION becomes the number"
    )
    norm_rms_eps: float | None = _model(
        Real(above=True), None, "epsilon of the RMS norms", shown_default="the model's"
    )
    rope_freq_base: float | None = _model(
        Real(above=True), None, "base frequency of RoPE", shown_default="the model's"
    )
    rope_freq_scale: float | None = _model(
        Real(above=True),
        None,
        "factor on RoPE's positions, 1 / factor of a stretched context",
        shown_default="the model's",
    )
    pre: str | None = _model(
        Text("NAME"),
        None,
        "how a BPE vocabulary cuts text, where the file names a way that is not known",
        shown_default="the model's tokenizer.ggml.pre",
    )

    lora_r: int | None = _lora(
        Whole(1, 65536),
        None,
        "rank of the adapter, and divisor of its scale alpha / r",
        shown_default="4 for plain text, 16 for chat",
    )
    lora_alpha: float | None = _lora(
        Real(above=True),
        None,
        "the adapter is scaled by alpha / r",
        shown_default="r for plain text, 2 r for chat",
    )
    rank_wq: int | None = _lora(_RANK, None, "rank of attn_q; 0: none", shown_default=_SEVEN)
    rank_wk: int | None = _lora(_RANK, None, "rank of attn_k; 0: none", shown_default=_SEVEN)
    rank_wv: int | None = _lora(_RANK, None, "rank of attn_v; 0: none", shown_default=_SEVEN)
    rank_wo: int | None = _lora(_RANK, None, "rank of attn_output; 0: none", shown_default=_SEVEN)
    rank_w1: int | None = _lora(
        _RANK, None, "rank of ffn_gate; 0: none", also=["--rank-ffn-gate"], shown_default=_SEVEN
    )
    rank_w2: int | None = _lora(
        _RANK, None, "rank of ffn_down; 0: none", also=["--rank-ffn-down"], shown_default=_SEVEN
    )
    rank_w3: int | None = _lora(
        _RANK, None, "rank of ffn_up; 0: none", also=["--rank-ffn-up"], shown_default=_SEVEN
    )
    rank_wqkv: int | None = _lora(
        _RANK,
        None,
        "rank of attn_qkv, which some models have in place of attn_q, attn_k and attn_v (and"
        " ffn_gate within ffn_up); 0: none",
        shown_default=_SEVEN,
    )
    rank_tok_embd: int | None = _lora(
        _RANK,
        None,
        "rank of token_embd; 0: none",
        shown_default=f"{_ENDS} and models with tied embeddings",
    )
    rank_out: int | None = _lora(
        _RANK,
        None,
        "rank of output, which models with tied embeddings do not have; 0: none",
        shown_default=_ENDS,
    )
    rank_att_norm: int | None = _lora(
        _RANK, None, "rank of attn_norm; 0: none", shown_default=_NORM
    )
    rank_ffn_norm: int | None = _lora(_RANK, None, "rank of ffn_norm; 0: none", shown_default=_NORM)
    rank_out_norm: int | None = _lora(
        _RANK, None, "rank of output_norm; 0: none", shown_default=_NORM
    )

    rslora: bool = _lora(None, False, "scale by alpha / sqrt(r) instead (rank-stabilised LoRA)")
    lora_dropout: float = _lora(
        Real(0, 1, below=True),
        0.0,
        "share of the values of a block's inputs that its pairs do not see in training",
    )
    lora_layers: str | None = _lora(
        Text("BLOCKS,..."),
        None,
        "blocks that get pairs: all, first:N, last:N or a list such as 4-11,20",
        shown_default="all",
    )

    adam_alpha: float | None = _rate(
        Real(above=True),
        None,
        "learning rate at its highest",
        also=["--lr", "--learning-rate"],
        shown_default="0.001 for plain text, 0.0002 for chat; a tenth of it with lion",
    )
    lr_schedule: str = _rate(
        Choice(SCHEDULES), "cosine", "how the rate falls; wsd: warm-up, stable, decay"
    )
    wsd_decay: float = _rate(
        Real(0, 1, above=True),
        0.1,
        "share of the iterations up to the decay's end in which wsd falls",
    )
    loraplus_lr_ratio: float = _rate(
        Real(above=True), 1.0, "rate of the Bs of all pairs / rate of their As (LoRA+)"
    )
    adam_min_alpha: float = _rate(Real(), 0.0, "lowest learning rate, also during warm-up")
    warmup: int | None = _rate(
        Whole(),
        None,
        "iterations in which the rate rises from its lowest",
        shown_default="100 for plain text, 3 % of the run for chat",
    )
    cos_decay_steps: int | None = _rate(
        Whole(1),
        None,
        "iteration at which the decay has reached its end",
        also=["--lr-decay-steps"],
        shown_default="1000 for plain text with cosine, else the run's last",
    )
    cos_decay_min: float | None = _rate(
        Real(0, 1),
        None,
        "end of the decay, as a fraction of the rate",
        also=["--lr-decay-min"],
        shown_default="0.1 for plain text with cosine, else 0",
    )
    enable_restart: bool = _rate(
        None,
        False,
        "start the cosine again when it has ended",
        off=["--disable-restart"],
    )
    cos_decay_restart: float = _rate(Real(1), 1.1, "factor on the decay's length at each restart")

    optimizer: str = _adam(Choice(OPTIMISERS), "adamw", "how a gradient becomes a step")
    adam_decay: float = _adam(
        Real(), 0.1, "weight decay, a factor on the learning rate", also=["--weight-decay"]
    )
    adam_decay_min_ndim: int = _adam(
        Whole(), 2, "decay only tensors with at least so many dimensions"
    )
    adam_beta1: float = _adam(
        Real(0, 1, below=True), 0.9, "decay rate of the first moment; momentum of sgd"
    )
    adam_beta2: float | None = _adam(
        Real(0, 1, below=True),
        None,
        "decay rate of the second moment, or of lion's mean",
        shown_default="0.999; 0.99 with lion",
    )
    adam_gclip: float = _adam(
        Real(), 1.0, "limit of the gradient's norm; 0: none", also=["--grad-clip"]
    )

    val_data: str = _val(
        Text(),
        "",
        "validation data, read as --train-data is; the adapter with the lowest loss on it is kept"
        " as BEST",
        shown_default="none",
    )
    val_split: float = _val(
        Real(0, 1, below=True),
        0.0,
        "hold this share of --train-data out of training, for validation",
        shown_default="none",
    )
    eval_every: int | None = _val(
        Whole(1),
        None,
        "iterations between two evaluations",
        shown_default="a tenth of the run",
    )
    early_stop: int = _val(
        Whole(), 0, "end after so many evaluations without a new lowest loss; 0: off"
    )
    sample_prompts: str = _val(
        Text(),
        "",
        "prompts, one a line, that are answered (greedily) at each evaluation",
        shown_default="none",
    )
    sample_tokens: int = _val(Whole(1, 4096), 48, "longest such answer, in tokens")

    opt_past: int = _stop(
        Whole(0, 1 << 20),
        0,
        "end when the loss is as --opt-delta says, compared with so many iterations ago; 0: off",
    )
    opt_delta: float = _stop(
        Real(-inf), 1e-5, "relative change of the loss below which --opt-past ends the run"
    )
    opt_max_no_improvement: int = _stop(
        Whole(-(2**31)), 0, "end after so many iterations without a new lowest loss; 0: off"
    )
    adam_epsf: float = _stop(
        Real(-inf), 0.0, "end when the loss changes by less than this fraction of it; 0: off"
    )

    compat: bool = _old(
        None, False, "compute as llama.cpp's finetune of 2024 did, quirks and defaults included"
    )
    checkpoint_order: str | None = _old(
        Choice(("left", "right")),
        None,
        "evaluation order of the run that wrote an old checkpoint",
        shown_default="told from its moments",
    )
    n_gpu_layers: int = _old(
        Whole(-(2**31)), 0, "only 0: this trainer computes on the CPU", also=["-ngl"]
    )
    use_flash: bool | None = _old(
        None, None, "no effect", off=["--no-flash"], shown_default="not given"
    )

    def constants(self) -> dict[str, Any]:
        """What takes the place of the model file's own, named as in `nbllama.model.load_model`."""
        values = {
            "rms_eps": self.norm_rms_eps,
            "rope_freq_base": self.rope_freq_base,
            "rope_freq_scale": self.rope_freq_scale,
            "pre": self.pre,
        }
        return {name: value for name, value in values.items() if value is not None}


OPTIONS = table(Options)


def parse(argv: Sequence[str]) -> Options:
    """The options of a command line, without the program's name.

    Raises `UsageError`; `--help` and `--version` print and raise `SystemExit(0)`.
    """
    given = read(OPTIONS, argv, FAMILIAR)
    if path := given.get("config"):
        # the last occurrence of an option wins, so these come first
        argv = [*config_words(path, OPTIONS, FAMILIAR), *argv]
    options = parse_into(Options, argv, prog=PROG, about=ABOUT, epilog=EPILOG, familiar=FAMILIAR)
    if not options.model_base:
        raise UsageError("which model? Give --model-base FILE; --help lists every option")
    if options.val_data and options.val_split:
        raise UsageError("--val-data and --val-split: validation data come from one of them")
    if options.n_gpu_layers:
        raise UsageError(
            f"--n-gpu-layers {options.n_gpu_layers}: this trainer computes on the CPU only; "
            "leave it out or give 0"
        )
    for name in ("pattern_fn_it", "fn_latest"):
        text = getattr(options, name)
        if not text or "/" in text or "\\" in text:
            raise UsageError(f"--{name.replace('_', '-')} is a part of a file's name, not empty")
    if options.escape:
        return replace(options, sample_start=unescape(options.sample_start))
    return options


def page() -> str:
    """The text of docs/options.md."""
    head = (
        "# Options of `python -m nbllama.finetune`\n\n"
        "Made by `python -m nbllama.cli.options > docs/options.md`; a test compares the two.\n\n"
        "`--option VALUE` and `--option=VALUE` are the same, `_` in a name counts as `-`, and of\n"
        "an option that is given twice the last one holds. `--help` and `--version` print and\n"
        "stop.\n\n"
    )
    return head + markdown(OPTIONS)


if __name__ == "__main__":
    print(page(), end="")
