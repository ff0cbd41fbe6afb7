"""Chats as the model will meet them: each answer behind the prompt that a server renders for it.

The prompt of an answer is the chat before it, rendered for generation. The answer is what the model
must write so that prompt and answer are this chat (`nbllama.text.answers`); it ends with the first
token that ends a generation. Both are tokenised apart, as inference does. An answer is trained in
the sample of a later one if the ids of that one's prompt begin with its own; otherwise it has a
sample of its own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nbllama.data.answers import Answer, begins_empty, row_of, why_apart
from nbllama.data.formats import Conversation, Message
from nbllama.data.formats.record import ANSWERING_ROLE
from nbllama.data.lost import LostPieces, lost_of_answer
from nbllama.data.notices import Notices
from nbllama.data.prepared import Prepared, Rendered
from nbllama.data.row import Row
from nbllama.data.spans import (
    Placed,
    any_special,
    encode_marked,
    encode_rendered,
    holds_special,
    special_spans,
    with_bos,
)
from nbllama.errors import DataError, NbllamaError
from nbllama.text.answers import split_answer, words_end
from nbllama.text.calls import NONE, with_arguments
from nbllama.text.thoughts import thought_of
from nbllama.text.traits import Traits

if TYPE_CHECKING:
    from nbllama.text.chat_template import ChatTemplate
    from nbllama.text.tokenizer import Tokenizer

_TAILS = 1000


class ChatReader:
    """Makes samples of chats for one tokenizer and template.

    `system_as_user`: where the template has no system messages, one goes into the first question.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate, *, system_as_user: bool = False
    ) -> None:
        self.notices = Notices()
        self._tokenizer = tokenizer
        self._template = template
        self._traits = Traits(template)
        self._lost = LostPieces(template)
        self._system_as_user = system_as_user
        self._tails: dict[str, Placed] = {}  # of prompts, from their last special token on

    def render(self, chats: Sequence[Conversation]) -> list[Rendered]:
        """Prompts and texts of the chats' answers, or why there are none."""
        found: list[Prepared | NbllamaError] = []
        for chat in chats:
            try:
                found.append(self._prepare(chat))
            except NbllamaError as e:
                found.append(e)
        good = [one for one in found if isinstance(one, Prepared)]
        texts = iter(self._template.render_chats([one.request for one in good]))
        out: list[Rendered] = []
        for one in found:
            if isinstance(one, NbllamaError):
                out.append(one)
                continue
            text = next(texts)
            out.append(self._hint(one, text) if isinstance(text, NbllamaError) else (one, text))
        return out

    def _hint(self, chat: Prepared, error: NbllamaError) -> NbllamaError:
        """Return the template's error, with what helps where it has no system messages."""
        system = chat.messages[0]["role"] == "system" and not self._system_as_user
        if not system or self._traits.knows_system:
            return error
        line = f"{error}; --system-as-user puts a system message in front of the first question"
        return type(error)(line)

    def warm(self, rendered: Sequence[Rendered]) -> None:
        """Tokenise together what `rows` will ask for one by one."""
        texts = []
        for one in rendered:
            if not isinstance(one, NbllamaError):
                cuts = one[1]
                texts.append(cuts[-2])
                for prompt, through in zip(cuts[::2], cuts[1::2], strict=True):
                    texts.append(through.removeprefix(prompt))
        self._tokenizer.warm(texts)

    def rows(self, rendered: Rendered, line: int = 1) -> list[Row]:
        """Return the samples of a chat, in the order of their last answers.

        Raises the template's refusal, or `DataError`.
        """
        if isinstance(rendered, NbllamaError):
            raise rendered
        chat, texts = rendered
        marked = any_special(self._tokenizer, chat.messages, chat.tools)
        answers: list[Answer] = []
        whole: tuple[str, Placed] | None = None  # the last prompt, which others are parts of
        for n in reversed(range(len(chat.numbers))):
            answer = self._answer(chat, n, texts, marked, whole)
            whole = whole or (answer.prompt, answer.placed_prompt)
            answers.append(answer)
        heads: list[tuple[Answer, np.ndarray, np.ndarray]] = []
        why: Counter[str] = Counter()
        for answer in answers:
            ids = answer.ids
            first = len(answer.placed_prompt.ids)
            for _, of, trained in heads:
                if len(of) >= len(ids) and np.array_equal(of[: len(ids)], ids):
                    trained[first : len(ids)] = True
                    break
            else:
                if heads:
                    why[why_apart(answer, heads[0][0])] += 1
                trained = np.zeros(len(ids), bool)
                trained[first:] = True
                heads.append((answer, ids, trained))
        self._count(chat, answers, texts, why, line)
        return [row_of(*head) for head in reversed(heads)]

    def prompt(self, messages: Sequence[Message]) -> tuple[str, Placed]:
        """Return the prompt for the answer to `messages`, with its tokens. Raises as `rows`."""
        prepared = self._traits.prepare(list(messages), self._system_as_user)[0]
        text = self._template.render(prepared, True)
        return text, encode_rendered(
            self._tokenizer, self._template, prepared, text, add_generation_prompt=True
        )

    def notes(self, n_records: int, n_samples: int) -> list[str]:
        """Return lines for the user about all chats that were read."""
        lines = self.notices.lines(n_records, n_samples)
        if self._traits.asks_to_think:
            lines.append(
                "llama.cpp's server sets enable_thinking to true, for which this chat template "
                "writes another prompt; give --template-vars enable_thinking=true to train for it"
            )
        unknown = [v for v in self._template.variables if v not in self._traits.names]
        if unknown:
            lines.append(f"the chat template has no variable {', '.join(unknown)}")
        return lines

    def _prepare(self, chat: Conversation) -> Prepared:
        found = Counter(chat.told)
        messages, more = self._traits.prepare(chat.messages, self._system_as_user)
        found += more
        answers = [i for i, m in enumerate(chat.messages) if m["role"] == ANSWERING_ROLE]
        shift = len(messages) - len(chat.messages)  # a folded system message is gone
        numbers = [i + shift for i in answers if i not in chat.silent]
        if numbers and numbers[0] == 0:
            found["first"] += 1
            numbers = numbers[1:]
        if not numbers:
            raise DataError(
                "no answer to train: nothing comes before the only one, so that there is no prompt "
                "for it"
            )
        n_calls = sum(bool(m.get("tool_calls")) for m in messages)
        if n_calls:
            form = self._traits.form_of_calls
            messages = with_arguments(messages, form)
            if form.arguments == NONE:
                found["hermes"] += n_calls
            elif form.null:
                found["null"] += sum(m["content"] is None for m in messages)
        if chat.variables and not self._traits.names.issuperset(chat.variables):
            found["variables"] += 1
        return Prepared(messages, numbers, chat.tools, chat.variables, found)

    def _answer(
        self,
        chat: Prepared,
        n: int,
        texts: list[str],
        marked: bool,
        whole: tuple[str, Placed] | None,
    ) -> Answer:
        number, (prompt, through) = chat.numbers[n], texts[2 * n : 2 * n + 2]
        message = chat.messages[number]
        closer = self._traits.closer if not through.startswith(prompt) else ""
        part = split_answer(prompt, through, chat.messages, number, closer=closer)
        text = part.text(through)
        if not text.strip():
            raise DataError(f"message {number + 1}: the chat template leaves this answer out")
        plain: list[tuple[int, int]] = []
        if marked:
            shift = len(part.head) - part.at
            if part.n_thought and holds_special(self._tokenizer, part.head[: part.n_thought]):
                plain.append((0, part.n_thought))
            for start, end in self._special(chat, number + 1, through, False):
                if end > part.at:
                    plain.append((max(start, part.at) + shift, end + shift))
        placed_prompt = self._prompt_tokens(chat, number, prompt, marked, whole)
        last = placed_prompt.ids[-1:].tolist()
        continues = bool(last) and last[0] not in self._tokenizer.special_ids
        placed = encode_marked(self._tokenizer, text, plain, continues=continues)
        text, placed = self._cut(text, placed, words_end(text, message))
        return Answer(number, prompt, text, placed_prompt, placed)

    def _cut(self, text: str, placed: Placed, words: int) -> tuple[str, Placed]:
        """Cut an answer after the first token behind its words that ends a generation."""
        eog = self._tokenizer.eog_ids
        begin = bisect_left(placed.starts, words)
        for i, token in enumerate(placed.ids[begin:].tolist(), begin):
            if token in eog:
                end = int(placed.starts[i]) + len(self._tokenizer.token_text(token))
                return text[:end], Placed(*(half[: i + 1] for half in placed))
        return text, placed

    def _special(
        self, chat: Prepared, n: int, text: str, add_generation_prompt: bool
    ) -> list[tuple[int, int]]:
        return special_spans(
            self._tokenizer, self._template, chat.messages[:n], text,
            add_generation_prompt=add_generation_prompt, tools=chat.tools, variables=chat.variables,
        )  # fmt: skip

    def _prompt_tokens(
        self,
        chat: Prepared,
        number: int,
        prompt: str,
        marked: bool,
        whole: tuple[str, Placed] | None,
    ) -> Placed:
        """Return the tokens of a prompt, from a longer one up to its last special token."""
        if not marked and whole is not None and whole[0].startswith(prompt):
            placed = whole[1]
            special = self._tokenizer.special_ids
            n = bisect_left(placed.starts, len(prompt)) - 1
            while n > 0 and not (
                int(placed.ids[n]) in special
                and placed.starts[n] + len(self._tokenizer.token_text(int(placed.ids[n])))
                <= len(prompt)
            ):
                n -= 1
            if n > 0:
                at = int(placed.starts[n])
                tail = self._tails.get(prompt[at:])
                if tail is None:
                    tail = encode_marked(self._tokenizer, prompt[at:])
                    if len(self._tails) < _TAILS:
                        self._tails[prompt[at:]] = tail
                moved = Placed(tail.ids, tail.starts + at, tail.ends + at)
                return Placed(
                    *(np.concatenate([a[:n], b]) for a, b in zip(placed, moved, strict=True))
                )
        plain = self._special(chat, number, prompt, True) if marked else []
        return with_bos(self._tokenizer, encode_marked(self._tokenizer, prompt, plain))

    def _count(
        self,
        chat: Prepared,
        answers: list[Answer],
        texts: list[str],
        why: Counter[str],
        line: int,
    ) -> None:
        """Count what there is to tell of a chat. Raises `DataError` for a call that is lost."""
        notices, found = self.notices, Counter(chat.found)
        self._lost.of_chat(chat, texts, found)
        empty = 0
        for answer in answers:
            message = chat.messages[answer.number]
            lost_of_answer(answer.text, message, answer.number, found)
            if begins_empty(answer) and not thought_of(message):
                empty += 1
                notices.switch = notices.switch or self._traits.switch
        notices.answers += len(answers)
        notices.empty_thoughts += empty
        notices.apart.update(why)
        if found:
            notices.add(line, found)


def prompt_ids(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message]
) -> list[int]:
    """Ids of a chat that the assistant is to go on with, encoded as in training.

    Raises what `template.render` and `encode_rendered` raise.
    """
    ids: list[int] = ChatReader(tokenizer, template).prompt(messages)[1].ids.tolist()
    return ids
