"""What a run reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from nbllama.options.parser import option
from nbllama.options.values import Text, Whole

_files = partial(option, "Files")


@dataclass(frozen=True)
class FileOptions:
    """Names of files, and when they are saved."""

    model_base: str = _files(
        Text(),
        "",
        "base model to train on, a GGUF file",
        shown_default="none, must be given",
        file="reads",
    )
    train_data: str = _files(
        Text(),
        "shakespeare.txt",
        "training data: plain text or records (JSON lines and others), or a folder with"
        " train.jsonl",
        file="reads",
    )
    checkpoint_in: str = _files(
        Text(),
        "checkpoint.gguf",
        "continue from this checkpoint, or from the newest good one in a folder; a missing file is"
        " a fresh start",
        file="reads",
    )
    lora_in: str = _files(
        Text(),
        "",
        "start from this adapter (.gguf, .bin or a PEFT folder) with new moments, unless there is"
        " a checkpoint to continue",
        shown_default="a new adapter",
        file="reads",
    )
    checkpoint_out: str = _files(
        Text(),
        "checkpoint-ITERATION.gguf",
        "where checkpoints are saved; empty: nowhere",
        file="writes",
    )
    strict_resume: bool = _files(
        None, False, "refuse a damaged newest checkpoint; else the one before it is continued"
    )
    lora_out: str = _files(
        Text(),
        "ggml-lora-ITERATION-f32.gguf",
        "where adapters are saved: .gguf for llama.cpp of today, .bin for that of 2023, a name with"
        " / at its end for PEFT; empty: nowhere",
        file="writes",
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
        Text(),
        "",
        "append a line of JSON per iteration to this file",
        shown_default="off",
        file="writes",
    )
    report: str = _files(
        Text(),
        "",
        "write a page about the run; without --log, the log goes beside it",
        shown_default="off",
        file="writes",
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
        file="reads",
    )
