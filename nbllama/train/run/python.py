"""Start a run from Python: convert the arguments to options, and restore signals and threads."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from nbllama.errors import Interrupted, NbllamaError, UsageError, counted, shown
from nbllama.generation.model import Model
from nbllama.kernels.cores import use_threads
from nbllama.model import passes
from nbllama.options.config import config_words
from nbllama.options.finetune.table import FAMILIAR, OPTIONS, Options, parse
from nbllama.options.keywords import keyword_words
from nbllama.report.log import EvaluationRecord, StepRecord
from nbllama.train.run.callbacks import callback, check_screen
from nbllama.train.run.given import Given, Records
from nbllama.train.run.result import Run
from nbllama.train.run.run import train
from nbllama.train.run.screen import Screen
from nbllama.train.run.stop import StopFlag

# The program has default names for these files; a call from Python uses none of them.
_NO_FILES = ["--checkpoint-in=", "--checkpoint-out=", "--lora-out="]
_ARGUMENTS = {"model_base": "first", "train_data": "second"}
_OF_THE_PROGRAM = ("debug", "list_archs")


def tune(
    model: Model | str | os.PathLike[str],
    data: str | os.PathLike[str] | Iterable[Mapping[str, Any] | str] | None,
    keywords: Mapping[str, Any],
    screen: Screen,
    *,
    on_step: Callable[[StepRecord], object] | None = None,
    on_eval: Callable[[EvaluationRecord], object] | None = None,
) -> Run:
    """Run `nbllama.tune`, reporting to `screen`."""
    check_screen(screen)
    on_step, on_eval = callback("on_step", on_step), callback("on_eval", on_eval)
    options, words, given = _read(model, data, dict(keywords), on_step, on_eval)
    stop = StopFlag("SIGINT")
    main = threading.current_thread() is threading.main_thread()
    try:
        with stop.installed() if main else nullcontext(), _threads(options.threads) as threads:
            run = train(options, threads, screen, stop, words=words, given=given)
    except Interrupted:
        raise KeyboardInterrupt from None  # before the first iteration
    finally:
        screen.close()
    if run.interrupted:
        more = ""
        if "checkpoint" in run.paths:
            more = f"; pass checkpoint_in={run.paths['checkpoint']!r} to resume it"
        if not stop.signum:  # no workers are left
            raise NbllamaError(f"{run.reason}; saved after iteration {run.iteration}{more}")
        who = "the live page" if stop.by_page else "Ctrl-C"
        text = f"{who} ended the run after iteration {run.iteration} of {run.last}{more}"
        warnings.warn(text, stacklevel=3)
    return run


def _read(
    model: Model | str | os.PathLike[str],
    data: Any,
    keywords: dict[str, Any],
    on_step: Callable[[StepRecord], object] | None,
    on_eval: Callable[[EvaluationRecord], object] | None,
) -> tuple[Options, list[str], Given]:
    """Return the options, the equivalent command-line arguments, and the values in memory."""
    for name in keywords:
        if name in _ARGUMENTS:
            raise UsageError(f"{name} is the {_ARGUMENTS[name]} argument, not an option")
        if name in _OF_THE_PROGRAM:
            raise UsageError(f"{name} is only available on the command line")
    path = model.gguf.path if isinstance(model, Model) else _path("model", model)
    own, records = _file_or_records("data", data)
    val_data = prompts = None
    if keywords.get("val_data") is not None:
        keywords["val_data"], val_data = _file_or_records("val_data", keywords["val_data"])
    if isinstance(keywords.get("sample_prompts"), list | tuple):
        prompts = list(keywords["sample_prompts"])
        if not all(isinstance(text, str) for text in prompts):
            raise UsageError("sample_prompts: pass a file, or a list of strings")
        keywords["sample_prompts"] = f"a list of {counted(len(prompts), 'prompt')}"
    words = list(_NO_FILES)
    if keywords.get("config"):
        # must come after the empty file names, and before the keywords, which override the file
        words += config_words(_path("config", keywords["config"]), OPTIONS, FAMILIAR)
    words += keyword_words(OPTIONS, keywords, FAMILIAR)
    words += [f"--model-base={path}", *([] if data is None else [f"--train-data={own}"])]
    options = parse(words)
    if data is None and not options.only_write_lora:
        raise UsageError(
            "the training data are missing; pass the name of a file, or a list of records"
        )
    for o in OPTIONS:
        # a switch without an opposite cannot be turned off once a file has turned it on
        if o.value is None and keywords.get(o.dest) is False and getattr(options, o.dest):
            raise UsageError(
                f"{o.dest}=False: the file {shown(options.config)} enables this option; "
                "remove it from the file"
            )
    loaded = model if isinstance(model, Model) else None
    keep_best = not (options.dry_run or options.only_write_lora)
    given = Given(loaded, records, val_data, prompts, on_step, on_eval, keep_best, from_python=True)
    return options, words, given


def _path(name: str, value: object) -> str:
    if isinstance(value, passes.Model):
        raise UsageError(f"{name}: load the model with nbllama.load_model")
    if isinstance(value, str | os.PathLike):
        return str(os.fspath(value))
    raise UsageError(f"{name}: a {type(value).__name__} is not allowed; pass the name of a file")


def _file_or_records(name: str, value: Any) -> tuple[str, Records | None]:
    """Return a file name and None, or a description of the records and the records."""
    if value is None or isinstance(value, str | os.PathLike):
        return "" if value is None else str(os.fspath(value)), None
    if hasattr(value, "columns") and hasattr(value, "to_dict"):
        raise UsageError(f"{name}: pass the rows of the table, {name}.to_dict('records')")
    if hasattr(value, "read"):
        raise UsageError(f"{name}: pass the name of the file instead of an open file")
    if isinstance(value, Mapping | bytes) or not isinstance(value, Iterable):
        raise UsageError(f"{name}: pass the name of a file, or a list of records")
    records = list(value)
    return f"a list of {counted(len(records), 'record')}", records


@contextmanager
def _threads(asked: int | None) -> Iterator[int]:
    """Set the number of threads inside the context."""
    import numba

    before = numba.get_num_threads()
    try:
        yield use_threads(asked)
    finally:
        numba.set_num_threads(before)
