"""The setup for `python -m nbllama.main`: the model, adapters, context, samplers and mode."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from nbllama.arch.hparams import Hparams, context_warnings
from nbllama.cli.chat.complete import interact, predict
from nbllama.cli.chat.console import Console, Interrupt
from nbllama.cli.chat.talk import Talk, read_text
from nbllama.cli.chat.turns import chat
from nbllama.cli.lora_files import load_adapters
from nbllama.errors import NotEnoughMemory, UsageError, shown
from nbllama.generation.memory import SessionMemory, session_memory
from nbllama.generation.predictor import Predictor
from nbllama.generation.sampling.chain import Sampler
from nbllama.generation.session import Session
from nbllama.lora.mix import mix
from nbllama.lora.pairs import Adapter
from nbllama.model.passes import Model, load_model
from nbllama.options.chat import Main
from nbllama.options.values import parse_variables
from nbllama.peek.dump import Dump
from nbllama.peek.watcher import watch
from nbllama.report.log import memory
from nbllama.system.memory import available_memory, mapped, resident
from nbllama.system.output_file import prepare_output
from nbllama.system.replaced import NPZ
from nbllama.text import ChatTemplate, Tokenizer, chat_template_for
from nbllama.text.templates import find_layout
from nbllama.train.run.settings import fresh_seed

_SHORTEST = 8  # as in llama.cpp
_USUAL = 4096
_QUIET = 2.0  # number of seconds without output before a note is printed


def run(main: Main, threads: int) -> None:
    """Run the task that the command line specifies."""
    o = main.options
    text = read_text(o)
    if o.dump:
        prepare_output(o.dump_out, main.inputs, NPZ)
    console, interrupt = Console(o.color), Interrupt()
    with ExitStack() as stack:
        stack.enter_context(interrupt.installed())
        stack.callback(console.end_line)
        model = load_model(o.model)
        parts = load_adapters(main.adapters, model.hp, model.shapes, console.note)
        adapter = mix(parts) if parts else None
        n_ctx = context(o.ctx_size, model.hp, o.strict, console)
        needed = session_memory(model, adapter, n_ctx, step=o.batch_size, threads=threads)
        if o.dry_run:
            print("\n".join(forecast_lines(model, needed, n_ctx, o.batch_size)))
        check_memory(needed, n_ctx)
        if o.dry_run:
            return
        template = None
        if main.mode == "chat":
            template = stack.enter_context(
                layout(o.chat_template, o.template_vars, model.tokenizer, console)
            )
        params = o.sampling(fresh_seed())
        tokenizer = model.tokenizer
        banned = tokenizer.eog_ids if o.ignore_eos else ()
        sampler = Sampler(params, model.hp.n_vocab, n_ctx, banned)
        shift = o.context_shift and o.predict != -2
        predictor = Predictor(
            model, adapter, sampler, n_ctx, batch=o.batch_size, shift=shift, exact=o.exact,
            check=interrupt.check,
        )  # fmt: skip
        warm_up(model, adapter, o.exact, console)
        if o.dump:
            seen = stack.enter_context(saved(o.dump_out, console))
            seen.append(stack.enter_context(watch(model, *o.dump, adapter=adapter)))
        seed = params.seed if params.temp > 0 or params.mirostat else None
        talk = Talk(o, tokenizer, predictor, console, interrupt, n_ctx, text, seed)
        if template is not None:
            chat(talk, template)
        else:
            (interact if main.mode == "interactive" else predict)(talk)
        if times := predictor.times.line():
            console.note(times)


@contextmanager
def saved(path: str, console: Console) -> Iterator[list[Dump]]:
    """On exit, even after Ctrl-C, write all dumps that were added to the yielded list."""
    seen: list[Dump] = []
    try:
        yield seen
    finally:
        for dump in seen:
            dump.save(path)
            console.note(f"wrote {len(dump)} arrays to {shown(path, 400)}")


def layout(name: str, variables: str, tokenizer: Tokenizer, console: Console) -> ChatTemplate:
    """Return the template that `--chat-template` names, or else the model's own template.

    If the model has no template, the result is ChatML if the vocabulary contains the ChatML tokens,
    else Alpaca's plain text. `variables` come from `--template-vars`.

    Raises `UsageError` or `GGUFError` if the template cannot be used.
    """
    tokens = tokenizer.token_id("<|im_start|>"), tokenizer.token_id("<|im_end|>")
    if not (name or tokenizer.chat_template) and None in tokens:
        console.note("warning: the model has no chat template; using the Alpaca layout")
        name = "alpaca"
    source = find_layout(name).source if name else None
    return chat_template_for(tokenizer, source, variables=parse_variables(variables))


def context(asked: int | None, hp: Hparams, strict: bool, console: Console) -> int:
    """Return the context length in tokens.

    Prints a warning if the length is unsuitable, for example because it is longer than the trained
    length. If `strict`, raises `UsageError` instead.
    """
    trained = hp.n_ctx_train or _USUAL
    n_ctx = asked or (trained if asked == 0 else min(trained, _USUAL))
    for line in context_warnings(hp, n_ctx):
        if strict:
            raise UsageError(f"--strict: {line}")
        console.note(f"warning: {line}")
    if n_ctx < _SHORTEST:
        console.note(
            f"warning: a context of {n_ctx} tokens is too short; using the minimum, {_SHORTEST}"
        )
    return max(n_ctx, _SHORTEST)


def forecast_lines(model: Model, needed: SessionMemory, n_ctx: int, batch: int) -> list[str]:
    """Return the `--dry-run` table.

    The program's own memory is measured; the other values are calculated.
    """
    model.tokenizer  # noqa: B018  # the vocabulary is large once it has been read
    held = resident() - mapped(*model.gguf.paths)
    file = f"{memory(model.gguf.size)}, mapped; not counted because the system can drop its pages"
    rows = [
        ("model file", file),
        ("KV cache", f"{memory(needed.cache)} for {n_ctx} tokens"),
        ("arena", f"{memory(needed.arena)} for {min(batch, n_ctx)} prompt tokens per pass"),
        ("program", f"{memory(held)} in use: Python, libraries, vocabulary, adapters"),
        ("private memory", f"{memory(held + needed.private)} in total"),
        ("available", memory(available_memory())),
    ]
    return [f"{name:15}{text}" for name, text in rows]


def check_memory(needed: SessionMemory, n_ctx: int) -> None:
    """Raise `NotEnoughMemory` if a session needs more memory than is available."""
    available = available_memory()
    if needed.private > available:
        raise NotEnoughMemory(
            f"a context of {n_ctx} tokens needs {memory(needed.private)}, but only "
            f"{memory(available)} is available; pass a smaller --ctx-size or --batch-size"
        )


def warm_up(model: Model, adapter: Adapter | None, exact: bool, console: Console) -> None:
    """Compile the kernels and read the weights by processing a few tokens before the text begins.

    A note is printed if the warm-up takes longer than `_QUIET` seconds.
    """
    said = threading.Event()

    def say() -> None:
        said.set()
        console.note("compiling kernels and reading weights (up to a minute the first time) ...")

    timer, start = threading.Timer(_QUIET, say), time.monotonic()
    timer.daemon = True
    timer.start()
    try:
        session = Session(model, adapter, _SHORTEST, exact=exact)
        session.feed([0] * (_SHORTEST - 1))
        session.feed([0])
    finally:
        timer.cancel()
    if said.is_set():
        console.note(f"ready after {time.monotonic() - start:.1f} s")
