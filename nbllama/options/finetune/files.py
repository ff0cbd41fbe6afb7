"""Options for the files that a run reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from nbllama.options.parser import option
from nbllama.options.values import Text, Whole

_files = partial(option, "Files")


@dataclass(frozen=True)
class FileOptions:
    """File names, and when to save the files."""

    model_base: str = _files(
        Text(),
        "",
        "base model to train on, a GGUF file",
        shown_default="none; required",
        file="reads",
    )
    train_data: str = _files(
        Text(),
        "shakespeare.txt",
        "training data: plain text or records (JSON lines and others), or a folder with"
        " train.jsonl",
        file="reads",
    )
    checkpoint_in: str | None = _files(
        Text(),
        None,
        "continue from this checkpoint, or from the newest valid one in a folder, for more"
        " iterations; if the file is missing, the run starts from the beginning",
        shown_default="the newest of --checkpoint-out, so that a stopped run is completed",
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
        None,
        False,
        "if the newest checkpoint is damaged, refuse it instead of continuing from "
        "the one before it",
    )
    lora_out: str = _files(
        Text(),
        "ggml-lora-ITERATION-f32.gguf",
        "where adapters are saved: .gguf for today's llama.cpp, .bin for llama.cpp of 2023, or a "
        "name that ends with / for PEFT; empty: nowhere",
        file="writes",
    )
    only_write_lora: bool = _files(
        None, False, "write the adapter of --checkpoint-in to --lora-out, and stop"
    )
    pattern_fn_it: str = _files(
        Text("TEXT"),
        "ITERATION",
        "text in output names that is replaced by the iteration number",
    )
    fn_latest: str = _files(
        Text("TEXT"), "LATEST", "text that replaces --pattern-fn-it in the newest file's name"
    )
    save_every: int = _files(
        Whole(-(2**31)), 10, "iterations between two saves; 0 or less: only at the end"
    )
    keep_last: int | None = _files(
        Whole(),
        None,
        "numbered checkpoints and adapters to keep; older ones are deleted; 0: all",
        shown_default="all for plain text, 2 for records",
    )
    log: str = _files(
        Text(),
        "",
        "append one line of JSON per iteration to this file",
        shown_default="off",
        file="writes",
    )
    report: str = _files(
        Text(),
        "",
        "write a page about the run; without --log, the log is written next to it",
        shown_default="off",
        file="writes",
    )
    card: bool = _files(
        None, False, "at the end, write a model card and an Ollama Modelfile next to the adapter"
    )
    tensorboard: str = _files(
        Text("FOLDER"), "", "write TensorBoard event files to this folder", shown_default="off"
    )
    config: str = _files(
        Text(),
        "",
        "read options from a YAML file with lines `name: value`; the command line takes precedence",
        shown_default="none",
        file="reads",
    )
