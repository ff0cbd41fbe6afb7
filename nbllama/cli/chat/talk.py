"""Code shared by the modes of `python -m nbllama.main`: prompts and streamed answers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from nbllama.cli.chat.console import Console, Interrupt, Stopped
from nbllama.data.text_file import decode_utf8, read_bytes
from nbllama.errors import UsageError
from nbllama.generation.predictor import ContextFull, Predictor
from nbllama.options.chat import MainOptions, read_escapes
from nbllama.text import StreamDecoder, Tokenizer

_WINDOW = 32  # number of trailing tokens searched for a reverse prompt, as in llama.cpp


class Stops:
    """Reverse prompts, which are strings that end an answer.

    `slack` is the number of bytes that may follow a reverse prompt, because the last token can
    extend past the end of the prompt.
    """

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str], slack: int) -> None:
        self.texts = list(texts)
        self._tokenizer = tokenizer
        self._slack = slack
        encoded = [tokenizer.encode(text, parse_special=True) for text in texts]
        self._single = {ids[0] for ids in encoded if len(ids) == 1}

    def met(self, tokens: Sequence[int]) -> bool:
        """Return whether `tokens` end with a reverse prompt."""
        if not self.texts or not tokens:
            return False
        tail = b"".join(self._tokenizer.token_bytes(i) for i in tokens[-_WINDOW:])
        wanted = [text.encode() for text in self.texts]
        return tokens[-1] in self._single or any(
            text in tail[max(0, len(tail) - len(text) - self._slack) :] for text in wanted
        )


def read_text(options: MainOptions) -> str:
    """Return the text from `--prompt` or `--file`, without a line break at the end of the file.

    Raises `DataError` if the file cannot be read, is empty or is not UTF-8.
    """
    if not options.file:
        return read_escapes(options, options.prompt, "--prompt")
    text = decode_utf8(read_bytes(options.file, "the prompt"), options.file)
    return read_escapes(options, text.removesuffix("\n").removesuffix("\r"), "--file")


@dataclass
class Talk:
    """A conversation between a model and its user."""

    options: MainOptions
    tokenizer: Tokenizer
    predictor: Predictor
    console: Console
    interrupt: Interrupt
    n_ctx: int
    text: str  # from --prompt or --file
    seed: int | None = None  # for random draws, if any

    def stops(self, slack: int, more: Sequence[str] = ()) -> Stops:
        """Return the reverse prompts from the command line plus those in `more`."""
        o = self.options
        texts = [read_escapes(o, text, "--reverse-prompt") for text in o.reverse_prompt]
        return Stops(self.tokenizer, [*texts, *more], slack)

    def ids(self, text: str) -> list[int]:
        """Return the tokens of a command-line string, which may contain special tokens."""
        return self.tokenizer.encode(text, parse_special=True)

    def begin(self, ids: Sequence[int]) -> None:
        """Check the first prompt, decide how much of it a context shift keeps, and print the seed.

        Raises `UsageError` if the prompt does not fit.
        """
        if len(ids) > self.n_ctx - 4:
            raise UsageError(
                f"the prompt has {len(ids)} tokens, but a context of {self.n_ctx} tokens has room "
                f"for only {self.n_ctx - 4}; pass a larger --ctx-size"
            )
        keep, bos = self.options.keep, self.tokenizer.bos_id
        has_bos = int(self.tokenizer.add_bos and bool(ids) and ids[0] == bos)
        self.predictor.keep = len(ids) if keep < 0 else min(keep + has_bos, len(ids))
        if self.seed is not None:
            self.console.note(f"seed {self.seed}")

    def open(self, ids: Sequence[int]) -> None:
        """Start the text with the tokens `ids`, and print their text."""
        if not ids:
            raise UsageError("the prompt is empty; pass --prompt TEXT or --file FILE")
        self.begin(ids)
        self.predictor.append(ids)
        if self.options.display_prompt:
            plain = ids[1:] if ids[0] == self.tokenizer.bos_id else ids
            decoder = StreamDecoder(self.tokenizer, at_start=True)
            self.console.write("".join(map(decoder.push, plain)) + decoder.flush(), "prompt")

    def speak(self, stops: Stops, *, stoppable: bool) -> tuple[str, str]:
        """Print an answer while generating it; return the answer and the reason why it ended.

        The reason is "eog", "stop" (a reverse prompt), "length", "interrupt" or "full".

        If `stoppable`, Ctrl-C ends the answer instead of the program.
        """
        decoder, parts, ending = StreamDecoder(self.tokenizer), [], "length"
        eog = self.tokenizer.eog_ids
        try:
            with self.interrupt.stops_answer() if stoppable else nullcontext():
                for token in self.predictor.draw(self.options.predict, eog):
                    if token in eog:
                        ending = "eog"
                        break
                    parts.append(decoder.push(token))
                    self.console.write(parts[-1])
                    if stops.met(self.predictor.tokens):
                        ending = "stop"
                        break
        except Stopped:
            ending = "interrupt"
        except ContextFull as e:
            ending, full = "full", e
        if ending in ("eog", "stop"):  # otherwise, the end can lie inside a character
            parts.append(decoder.flush())
            self.console.write(parts[-1])
        if ending == "full":
            self.tell(full)
        return "".join(parts), ending

    def tell(self, e: ContextFull) -> None:
        """Explain that the context is full, and what to do about it."""
        more = "" if self.options.context_shift else ", or --context-shift"
        self.console.note(f"{e}; pass a larger --ctx-size{more}")
