"""Options for the files that a run reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from nbllama.options.file_names import File
from nbllama.options.parser import option
from nbllama.options.values import Text, Whole

_files = partial(option, "Files")


@dataclass(frozen=True)
class FileOptions:
    """Options for file names and the save interval."""

    model_base: str = _files(
        File(),
        "",
        "base model, a GGUF file",
        shown_default="none; required",
        file="reads",
    )
    train_data: str = _files(
        File(),
        "shakespeare.txt",
        "training data: plain text, records (JSON Lines or another format), or a folder with "
        "train.jsonl",
        file="reads",
    )
    checkpoint_in: str | None = _files(
        File(),
        None,
        "resume from this checkpoint, or from the newest valid one in a folder, and train for "
        "more iterations; if the file is missing, start from the beginning",
        shown_default="the newest checkpoint written to --checkpoint-out, so that a stopped run "
        "continues",
        file="reads",
    )
    lora_in: str = _files(
        File(),
        "",
        "start from this adapter (.gguf, .bin or a PEFT folder) with new optimiser moments, "
        "unless there is a checkpoint to resume from",
        shown_default="a new adapter",
        file="reads",
    )
    checkpoint_out: str = _files(
        File(),
        "checkpoint-ITERATION.gguf",
        "file name for the checkpoints; empty: save none",
        file="writes",
    )
    strict_resume: bool = _files(
        None,
        False,
        "if the newest checkpoint is damaged, stop instead of resuming from the previous one",
    )
    lora_out: str = _files(
        File(),
        "ggml-lora-ITERATION-f32.gguf",
        "file name for the adapters: .gguf for current llama.cpp, .bin for 2023 versions of "
        "llama.cpp, or a name that ends in / for PEFT; empty: save none",
        file="writes",
    )
    only_write_lora: bool = _files(
        None, False, "write the adapter in --checkpoint-in to --lora-out, then exit"
    )
    pattern_fn_it: str = _files(
        Text("TEXT"),
        "ITERATION",
        "placeholder for the iteration number in output names",
    )
    fn_latest: str = _files(
        Text("TEXT"), "LATEST", "text that replaces --pattern-fn-it in the name of the newest file"
    )
    save_every: int = _files(
        Whole(-(2**31)), 10, "number of iterations between saves; 0 or less: save only at the end"
    )
    keep_last: int | None = _files(
        Whole(),
        None,
        "how many numbered checkpoints and adapters to keep; older ones are deleted; 0: all",
        shown_default="all for plain text, 2 for records",
    )
    log: str = _files(
        File(),
        "",
        "append one line of JSON per iteration to this file",
        shown_default="off",
        file="writes",
    )
    report: str = _files(
        File(),
        "",
        "write an HTML page about the run; without --log, the log is written next to the page",
        shown_default="off",
        file="writes",
    )
    card: bool = _files(
        None, False, "at the end, write a model card and an Ollama Modelfile next to the adapter"
    )
    tensorboard: str = _files(
        File("FOLDER"), "", "write TensorBoard event files to this folder", shown_default="off"
    )
    config: str = _files(
        File(),
        "",
        "read options from a YAML file of `name: value` lines; the command line takes precedence",
        shown_default="none",
        file="reads",
    )
