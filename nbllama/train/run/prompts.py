"""`--sample-prompts`: the model's answers at each evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from nbllama.data import prompt_ids
from nbllama.data.text_file import decode_utf8, read_bytes
from nbllama.errors import UsageError, shown
from nbllama.generation.session import stream
from nbllama.options.finetune.table import Options
from nbllama.options.values import parse_variables
from nbllama.text import beginning, chat_template_for, find_layout

if TYPE_CHECKING:
    from nbllama.data import Dataset
    from nbllama.model.passes import Model
    from nbllama.train.objective import Check, Computing
    from nbllama.train.trainer import Trainer

MOST = 100  # maximum number of prompts
_ASKED = ("chat", "sharegpt", "alpaca")  # formats whose questions require the chat template


class Prompt(NamedTuple):
    """The text of a prompt, and the ids that the model receives."""

    text: str
    ids: list[int]


def load_prompts(
    options: Options, model: Model, data: Dataset, given: Sequence[str] | None = None
) -> list[Prompt]:
    """Return the non-blank lines of the `--sample-prompts` file, or the `given` strings.

    Returns an empty list if `--sample-prompts` is not given. If the training data are chats, each
    string is a user message. Otherwise, the model completes the string.

    Raises `DataError` if the file cannot be read, and `UsageError` if it contains no prompt or more
    than `MOST` prompts.
    """
    path = options.sample_prompts
    if not path:
        return []
    if given is None:
        lines = [line.strip() for line in decode_utf8(read_bytes(path), path).splitlines()]
        texts = [line for line in lines if line]
    else:
        texts = list(given)
    if not 1 <= len(texts) <= MOST:
        raise UsageError(
            f"--sample-prompts {shown(path, 400)}: found {len(texts)} prompts; pass 1 to {MOST}, "
            "one per line"
        )
    return encode_prompts(options, model, data, texts)


def encode_prompts(
    options: Options, model: Model, data: Dataset, texts: Sequence[str]
) -> list[Prompt]:
    """Encode the prompts for the model.

    Applies the chat template if the training data are chats.
    """
    if getattr(data, "format", "raw") not in _ASKED:
        return [Prompt(text, model.tokenizer.encode(text, add_special=True)) for text in texts]
    layout = find_layout(options.chat_template) if options.chat_template else None
    now = datetime.fromisoformat(options.template_date) if options.template_date else None
    template = chat_template_for(
        model.tokenizer,
        layout.source if layout else None,
        now=now,
        variables=parse_variables(options.template_vars),
    )
    try:
        return [
            Prompt(text, prompt_ids(model.tokenizer, template, [{"role": "user", "content": text}]))
            for text in texts
        ]
    finally:
        template.close()  # the template runs in its own process


@dataclass(frozen=True)
class GreedyAnswer:
    """A task that computes the greedy answer to a prompt, as at most `most` token ids."""

    prompt: list[int]
    most: int

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens in the prompt and the longest possible answer."""
        return len(self.prompt) + self.most

    def run(self, work: Computing, check: Check) -> list[int]:
        """Compute the answer; `check` is called after each token."""
        ids = []
        for token in stream(work.model, self.prompt, self.most, work.adapter):
            if check is not None:
                check()
            ids.append(token)
        return ids


def answers(
    prompts: list[Prompt], trainer: Trainer, most_tokens: int, check: Callable[[], None]
) -> tuple[dict[str, str], ...]:
    """Return the greedy answers, each of at most `most_tokens` tokens.

    An answer that is truncated at this limit ends with "…". `check` is called frequently and may
    raise `StopRequested`.
    """
    # one more token shows whether an answer is truncated
    tasks = [GreedyAnswer(prompt.ids, most_tokens + 1) for prompt in prompts]
    tokenizer = trainer.model.tokenizer
    return tuple(
        {"prompt": prompt.text, "answer": beginning(tokenizer, ids, most_tokens)}
        for prompt, ids in zip(prompts, trainer.each(tasks, check), strict=True)
    )
