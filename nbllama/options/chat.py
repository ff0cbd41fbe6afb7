"""The command line of `python -m nbllama.main`: one table for the parser, the help and the docs.

Names, meanings and defaults follow llama.cpp's completion program (`main` in 2023), except for the
differences listed in docs/main.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

from nbllama.errors import UsageError
from nbllama.generation.sampling.params import SamplingParams
from nbllama.generation.sampling.ranges import RANGES
from nbllama.options.adapters import lora_option, lora_scaled_option, take_adapters
from nbllama.options.common import debug_option, model_option, threads_option
from nbllama.options.escapes import unescape
from nbllama.options.familiar.others import CHAT
from nbllama.options.file_names import File
from nbllama.options.parser import markdown, option, parse_into, table
from nbllama.options.values import Real, Text, Variables, Whole

_files = partial(option, "Files")
_text = partial(option, "Text")
_run = partial(option, "Length and context")
_talk = partial(option, "Interactive and chat")
_machine = partial(option, "Run")

PROG = "python -m nbllama.main"
_ABOUT = """Complete a prompt or chat, with any number of LoRA adapters."""
_EPILOG = """-p or -f alone completes the prompt. -cnv starts a chat with the model's template; this
is the default if neither a prompt nor a mode is given. Ctrl-C stops the answer; a second Ctrl-C, or
Ctrl-D, ends the program.

exit codes: 0 success, 1 failure, 2 bad usage or bad file, 4 out of memory, 5 adapter does not fit,
130 interrupted by Ctrl-C"""


def _setting(name: str, help: str, also: Sequence[str] = ()) -> Any:
    """Declare an option for a field of `SamplingParams`."""
    low, high, off, whole = RANGES[name]
    value = Whole(int(low), int(high)) if whole else Real(low, high, off=off)
    return option("Sampling", value, getattr(SamplingParams, name), help, also=also)


@dataclass(frozen=True)
class MainOptions:
    """The options of `main`, except for the adapters."""

    model: str = model_option("the model", "-m")
    lora: str = lora_option()
    lora_scaled: str = lora_scaled_option()

    prompt: str = _text(
        Text("TEXT"), "", "text to complete; in a chat, the first message", also=["-p"],
        shown_default="none",
    )  # fmt: skip
    file: str = _text(
        File(), "", "file with the text to complete", also=["-f"], shown_default="none"
    )
    escape: bool = _text(
        None, False, r"interpret \n \r \t \' \" \\ and \xHH in text options as escape sequences",
        also=["-e"],
        off=["--no-escape"],
    )  # fmt: skip
    display_prompt: bool = _text(
        None, True, "also print the prompt", off=["--no-display-prompt"], shown_default="on"
    )
    reverse_prompt: tuple[str, ...] = _text(
        Text("TEXT"), (), "stop when the model generates this text and, in interactive mode, read "
                          "your input; can be repeated", also=["-r"], shown_default="none",
        many=True,
    )  # fmt: skip

    predict: int = _run(
        Whole(-2), -1, "maximum number of tokens per answer; -1: no limit, -2: until the context "
                       "is full",
        also=["-n", "--n-predict"],
    )  # fmt: skip
    ctx_size: int | None = _run(
        Whole(0, 2**24), None, "context length in tokens; 0: the length the model was trained with",
        also=["-c"], shown_default="the length the model was trained with, at most 4096",
    )  # fmt: skip
    batch_size: int = _run(Whole(1, 65536), 512, "prompt tokens per forward pass", also=["-b"])
    context_shift: bool = _run(
        None, False, "when the context is full, drop its older half and continue",
        off=["--no-context-shift"],
    )  # fmt: skip
    keep: int = _run(
        Whole(-1),
        0,
        "number of tokens at the start of the prompt that --context-shift keeps; -1: all",
    )
    ignore_eos: bool = _run(
        None, False, "ignore EOS, so that answers end only at the maximum length"
    )
    strict: bool = _run(None, False, "refuse a context longer than the model was trained with")

    conversation: bool | None = _talk(
        None, None, "chat using the chat template", also=["-cnv"],
        off=["-no-cnv", "--no-conversation"],
        shown_default="on if neither a prompt nor another mode is given",
    )  # fmt: skip
    system_prompt: str = _talk(
        Text("TEXT"), "", "system message for the chat", also=["-sys"], shown_default="none"
    )
    chat_template: str = _talk(
        Text("NAME|FILE"), "", "chat layout: alpaca, baichuan, chatml, llama-2, llama-3, or"
        " a file with a Jinja template", also=["--chat-template-file"],
        shown_default="the model's own",
    )  # fmt: skip
    template_vars: str = _talk(
        Variables(), "", "variables for the chat template, such as enable_thinking=false; values "
                         "are JSON or text", shown_default="none",
    )  # fmt: skip
    single_turn: bool = _talk(None, False, "exit after one answer", also=["-st"])
    interactive: bool = _talk(
        None, False, "read more input from the keyboard after each answer", also=["-i"]
    )
    interactive_first: bool = _talk(
        None, False, "like --interactive, but also read input before the first answer", also=["-if"]
    )
    instruct: bool = _talk(
        None,
        False,
        "like --interactive-first, with Alpaca headings around your input",
        also=["-ins"],
    )
    in_prefix: str = _talk(
        Text("TEXT"), "", "text to insert before your input; disables the chat template",
        shown_default="none",
    )  # fmt: skip
    in_suffix: str = _talk(
        Text("TEXT"), "", "text to insert after your input; disables the chat template",
        shown_default="none",
    )  # fmt: skip
    color: bool = _talk(
        None,
        False,
        "show the prompt and your input in different colours",
        also=["-co"],
        off=["--no-color"],
    )

    seed: int = option(
        "Sampling",
        Whole(-1, 2**32 - 1),
        -1,
        "seed for sampling; -1: a new seed, which is printed",
        also=["-s"],
    )
    temp: float = _setting(
        "temp", "temperature; 0 or less: always the most likely token", also=["--temperature"]
    )
    top_k: int = _setting("top_k", "sample from the K most likely tokens; 0 or less: all")
    top_p: float = _setting(
        "top_p", "sample from the most likely tokens whose total probability reaches P; 1: all"
    )
    min_p: float = _setting(
        "min_p", "drop tokens whose probability is below P times the highest; 0: drop none"
    )
    typical: float = _setting(
        "typical",
        "locally typical sampling with this total probability; 1: off",
        also=["--typical-p"],
    )
    repeat_last_n: int = _setting(
        "repeat_last_n",
        "number of recent tokens to which the penalties apply; -1: the whole context",
    )
    repeat_penalty: float = _setting(
        "repeat_penalty",
        "repetition penalty: factor by which to lower the logits of recent tokens; 1: off",
    )
    frequency_penalty: float = _setting(
        "frequency_penalty",
        "frequency penalty: subtracted from a token's logit for each of its recent occurrences",
    )
    presence_penalty: float = _setting(
        "presence_penalty", "presence penalty: subtracted from the logits of recent tokens"
    )
    mirostat: int = _setting(
        "mirostat", "Mirostat version to use instead of the filters and penalties; 0: off"
    )
    mirostat_lr: float = _setting("mirostat_lr", "Mirostat's learning rate eta")
    mirostat_ent: float = _setting("mirostat_ent", "Mirostat's target tau, in bits per token")

    threads: int | None = threads_option()
    dry_run: bool = _machine(None, False, "print the memory forecast, then exit")
    exact: bool = _machine(
        None, False, "keep activations in float32 instead of rounding them to 8 bits"
    )
    n_gpu_layers: int = _machine(
        Whole(-(2**31)), 0, "must be 0, because this program runs on the CPU", also=["-ngl"]
    )
    dump: tuple[str, ...] = _machine(
        Text("PATTERN"), (), "dump the arrays whose names match these patterns (as in "
                             "nbllama.peek); can be repeated", shown_default="none", many=True,
    )  # fmt: skip
    dump_out: str = _machine(File(), "dump.npz", "output file for --dump")
    debug: bool = debug_option()

    def sampling(self, seed: int) -> SamplingParams:
        """Return the sampler settings; `seed` replaces a seed of -1."""
        values = {f.name: getattr(self, f.name) for f in fields(SamplingParams)}
        return SamplingParams(**values | {"seed": self.seed if self.seed >= 0 else seed})


@dataclass(frozen=True)
class Main:
    """A parsed command line: the options, and the adapters as (file, scale) pairs in order."""

    options: MainOptions
    adapters: list[tuple[str, float]] = field(default_factory=list)

    @property
    def inputs(self) -> list[str]:
        """Return all input files and folders."""
        o = self.options
        names = [o.model, o.file, o.chat_template, *(path for path, _ in self.adapters)]
        return [name for name in names if name]

    @property
    def mode(self) -> str:
        """Return "chat", "interactive" or "predict"."""
        o = self.options
        typed = o.interactive or o.interactive_first or o.instruct
        chat = o.conversation
        if chat is None:
            chat = not (o.prompt or o.file or typed)
        if chat and not (o.in_prefix or o.in_suffix):
            return "chat"
        return "interactive" if chat or typed else "predict"


def parse_main(
    argv: Sequence[str],
    kind: type[MainOptions] = MainOptions,
    *,
    about: str = _ABOUT,
    epilog: str = _EPILOG,
    conversation: bool | None = None,
) -> Main:
    """Parse the command line (without the program name).

    `kind` is the dataclass of the options, `about` and `epilog` are help texts, and `conversation`
    is the default for the option of that name. Raises `UsageError`. `--help` and `--version` print
    their text and raise `SystemExit(0)`.
    """
    adapters, rest = take_adapters(argv, table(kind))
    o = parse_into(kind, rest, prog=PROG, about=about, epilog=epilog, familiar=CHAT)
    if o.conversation is None and not o.instruct:
        o = replace(o, conversation=conversation)
    if not o.model:
        raise UsageError("--model FILE is missing; --help lists every option")
    if o.n_gpu_layers:
        raise UsageError(
            f"--n-gpu-layers {o.n_gpu_layers}: this program runs on the CPU only; omit the option"
        )
    if o.prompt and o.file:
        raise UsageError("--prompt and --file: pass only one of them")
    if not all(o.reverse_prompt):
        raise UsageError("--reverse-prompt: the text is empty; pass the text that ends an answer")
    if o.conversation and o.instruct:
        raise UsageError("--conversation and --instruct: pass only one of them")
    main = Main(o, adapters)
    if o.dry_run and o.dump:
        raise UsageError("--dump and --dry-run: a dry run computes nothing; pass only one of them")
    if main.mode != "chat":
        for name in ("system_prompt", "chat_template", "template_vars", "single_turn"):
            if getattr(o, name):
                text = name.replace("_", "-")
                raise UsageError(f"--{text} applies only to chats; also pass --conversation")
    return main


def read_escapes(options: MainOptions, text: str, name: str) -> str:
    """Unescape `text` if `--escape` is on. Raises `UsageError` with `name` in the message."""
    return unescape(text, name) if options.escape else text


def options_page() -> str:
    """Return the text of docs/main-options.md."""
    head = f"""# Options of `{PROG}`

Generated by `python -m nbllama.options.chat > docs/main-options.md`; a test checks that it is up
to date.

`--option VALUE` and `--option=VALUE` are equivalent, and `_` in an option name is read as `-`. If
an option is repeated, the last value is used, except for `--lora`, `--lora-scaled` and `-r`, whose
values accumulate.

"""
    return head + markdown(table(MainOptions))


if __name__ == "__main__":
    print(options_page(), end="")
