"""Convert chats to samples, in which each answer follows the prompt that a server would render.

The prompt for an answer is the part of the chat before it, rendered for generation. The answer is
the text that the model must write so that the prompt and the answer together form the chat
(`nbllama.text.answers`). It ends with the first end-of-generation token. The prompt and the answer
are tokenised separately, as in inference. If the ids of the prompt and the answer are the beginning
of a later prompt's ids, the answer is trained on as part of that later answer's sample. Otherwise,
it becomes a separate sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nbllama.data.answers import Answer, begins_empty, row_of, why_apart
from nbllama.data.formats import Conversation, Message
from nbllama.data.formats.record import ANSWERING_ROLE
from nbllama.data.formats.tools import switched
from nbllama.data.lost import LEFT_OUT, LostPieces, lost_of_answer
from nbllama.data.notices import Notices
from nbllama.data.prepared import Prepared, Rendered
from nbllama.data.row import Row
from nbllama.data.spans import (
    Placed,
    any_special,
    encode_rendered,
    holds_special,
    special_spans,
)
from nbllama.data.tokens import ChatTokens
from nbllama.errors import DataError, MessageError, NbllamaError
from nbllama.text.answers import split_answer, words_end
from nbllama.text.calls import NONE, with_arguments
from nbllama.text.thoughts import is_cut_off, thought_in, thought_of
from nbllama.text.traits import Traits

if TYPE_CHECKING:
    from nbllama.text.chat_template import ChatTemplate
    from nbllama.text.tokenizer import Tokenizer


class ChatReader:
    """A converter from chats to samples, for one tokenizer and template.

    `system_as_user` puts system messages into the first question if the template does not support
    them. With `places`, each sample also contains its text and the positions of its tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        *,
        system_as_user: bool = False,
        places: bool = True,
    ) -> None:
        self.notices = Notices()
        self._tokenizer = tokenizer
        self._template = template
        self._traits = Traits(template)
        self._lost = LostPieces(template)
        self._system_as_user = system_as_user
        self._places = places
        self._tails: dict[str, list[int]] = {}

    def render(self, chats: Sequence[Conversation]) -> list[Rendered]:
        """Return, for each chat, either the prompts and texts of its answers or an error."""
        prepared: list[Prepared | NbllamaError] = []
        for chat in chats:
            try:
                prepared.append(self._prepare(chat))
            except NbllamaError as e:
                prepared.append(e)
        good = [p for p in prepared if isinstance(p, Prepared)]
        texts = iter(self._template.render_chats([p.request for p in good]))
        out: list[Rendered] = []
        for p in prepared:
            if isinstance(p, NbllamaError):
                out.append(p)
                continue
            text = next(texts)
            out.append(self._hint(p, text) if isinstance(text, NbllamaError) else (p, text))
        return out

    def _hint(self, chat: Prepared, error: NbllamaError) -> NbllamaError:
        """Return the template error, with a hint if the template rejects system messages."""
        roles = [m["role"] for m in chat.messages]
        if "system" not in roles or self._traits.knows_system:
            return error
        hint = "--system-as-user puts a system message in front of the first question"
        if self._system_as_user:
            hint = (
                "--system-as-user applies only to a system message that is the first message and "
                "is followed by a question"
            )
        elif roles[0] != "system":
            return error
        return type(error)(f"{error}; {hint}")

    def warm(self, rendered: Sequence[Rendered]) -> None:
        """Tokenise all texts that later calls to `rows` will use, in a single call."""
        texts = []
        for chat in rendered:
            if not isinstance(chat, NbllamaError):
                cuts = chat[1]
                texts.append(cuts[-2])
                for prompt, through in zip(cuts[::2], cuts[1::2], strict=True):
                    texts.append(through.removeprefix(prompt))
        self._tokenizer.warm(texts)

    def rows(self, rendered: Rendered, line: int = 1) -> list[Row]:
        """Return the samples of a chat, in the order of their last answers.

        `line` is the line of the record, for notices.

        Raises `DataError`, or the template error if the template rejects the chat.
        """
        if isinstance(rendered, NbllamaError):
            raise rendered
        chat, texts = rendered
        marked = any_special(self._tokenizer, chat.messages, chat.tools)
        tokens = ChatTokens(self._tokenizer, self._tails)
        try:
            answers = [
                self._answer(chat, n, texts, tokens, marked)
                for n in reversed(range(len(chat.numbers)))
            ]
        except MessageError as e:
            raise chat.numbered(e) from None
        heads: list[tuple[Answer, list[int], np.ndarray]] = []
        why: Counter[str] = Counter()
        for answer in answers:
            ids = answer.before.ids + answer.own.ids
            first = len(answer.before.ids)
            for _, of, trained in heads:
                if of[: len(ids)] == ids:
                    trained[first : len(ids)] = True
                    break
            else:
                if heads:
                    why[why_apart(answer, heads[0][0])] += 1
                trained = np.zeros(len(ids), bool)
                trained[first:] = True
                heads.append((answer, ids, trained))
        self._count(chat, answers, texts, why, line)
        tokenizer = self._tokenizer if self._places else None
        return [row_of(answer, ids, on, tokenizer) for answer, ids, on in reversed(heads)]

    def prompt(self, messages: Sequence[Message]) -> tuple[str, Placed]:
        """Return the prompt for an answer to `messages`, as text and as tokens.

        Raises the same errors as `rows`.
        """
        prepared = self._traits.prepare(list(messages), self._system_as_user)[0]
        if any(m.get("tool_calls") for m in prepared):
            prepared = with_arguments(prepared, self._traits.form_of_calls)
        text = self._template.render(prepared, True)
        try:
            return text, encode_rendered(
                self._tokenizer, self._template, prepared, text, add_generation_prompt=True
            )
        except MessageError as e:
            raise DataError(e.counted(len(messages) - len(prepared))) from None

    def notes(self, n_records: int, n_samples: int) -> list[str]:
        """Return messages to the user about all chats that were read."""
        lines = self.notices.lines(n_records, n_samples)
        if self._traits.asks_to_think:
            lines.append(
                "llama.cpp's server sets enable_thinking to true, which makes this chat template "
                "write a different prompt; pass --template-vars enable_thinking=true to train "
                "with that prompt"
            )
        unknown = [v for v in self._template.variables if v not in self._traits.names]
        if unknown:
            lines.append(f"the chat template has no variable {', '.join(unknown)}")
        return lines

    def _prepare(self, chat: Conversation) -> Prepared:
        found = Counter(chat.notices)
        messages, more = self._traits.prepare(chat.messages, self._system_as_user)
        found += more
        answers = [i for i, m in enumerate(chat.messages) if m["role"] == ANSWERING_ROLE]
        shift = len(messages) - len(chat.messages)  # -1 if the system message was merged
        numbers = [i + shift for i in answers if i not in chat.silent]
        if numbers and numbers[0] == 0:
            found["first"] += 1
            numbers = numbers[1:]
        if not numbers:
            raise DataError(
                "no answer to train on: the only answer is the first message, which has no prompt"
            )
        n_calls = sum(bool(m.get("tool_calls")) for m in messages)
        if n_calls:
            form = self._traits.form_of_calls
            messages = with_arguments(messages, form)
            if form.arguments == NONE:
                found["hermes"] += n_calls
            elif form.null:
                found["null"] += sum(m["content"] is None for m in messages)
        variables = chat.variables
        if variables:
            variables = switched(variables, self._traits.names)
            if not self._traits.names.issuperset(variables):
                found["variables"] += 1
        return Prepared(messages, numbers, chat.tools, variables, found, -shift - chat.n_first)

    def _answer(
        self, chat: Prepared, n: int, texts: list[str], tokens: ChatTokens, marked: bool
    ) -> Answer:
        number, (prompt, through) = chat.numbers[n], texts[2 * n : 2 * n + 2]
        message = chat.messages[number]
        closer = self._traits.closer if not through.startswith(prompt) else ""
        part = split_answer(prompt, through, chat.messages, number, closer=closer)
        text = part.text(through)
        if not text.strip():
            raise MessageError([number], LEFT_OUT)
        plain: list[tuple[int, int]] = []
        if marked:
            shift = len(part.head) - part.at
            if part.n_thought and holds_special(self._tokenizer, part.head[: part.n_thought]):
                plain.append((0, part.n_thought))
            for start, end in self._special(chat, number + 1, through, False):
                if end > part.at:
                    plain.append((max(start, part.at) + shift, end + shift))
        if marked:
            before = tokens.marked_prompt(prompt, self._special(chat, number, prompt, True))
        else:
            before = tokens.prompt(prompt)
        continues = bool(before.ids) and before.ids[-1] not in self._tokenizer.special_ids
        own, end = tokens.answer(text, words_end(text, message), plain=plain, continues=continues)
        return Answer(number, text[:end], before, own)

    def _special(
        self, chat: Prepared, n: int, text: str, add_generation_prompt: bool
    ) -> list[tuple[int, int]]:
        return special_spans(
            self._tokenizer, self._template, chat.messages[:n], text,
            add_generation_prompt=add_generation_prompt, tools=chat.tools, variables=chat.variables,
        )  # fmt: skip

    def _count(
        self,
        chat: Prepared,
        answers: list[Answer],
        texts: list[str],
        why: Counter[str],
        line: int,
    ) -> None:
        """Count the notices for a chat. Raises `DataError` if the template omits a tool call."""
        notices, found = self.notices, Counter(chat.found)
        self._lost.of_chat(chat, texts, found)
        if chat.messages[-1]["role"] != "assistant":
            found["open"] += 1
        empty = 0
        for answer in answers:
            message = chat.messages[answer.number]
            try:
                lost_of_answer(answer.text, message, answer.number, found)
            except MessageError as e:
                raise chat.numbered(e) from None
            if is_cut_off(message["content"]):
                found["cut off"] += 1
                continue
            # If the template leaves out a thought under a key, `lost_of_answer` has counted it.
            if begins_empty(answer) and (thought_in(message["content"]) or not thought_of(message)):
                empty += 1
                notices.switch = notices.switch or self._traits.switch
        notices.answers += len(answers)
        notices.empty_thoughts += empty
        if why:
            notices.apart.update(why)
        if found:
            notices.add(line, found)


def prompt_ids(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message]
) -> list[int]:
    """Return the prompt ids for the assistant's next message, encoded as in training.

    Raises the same errors as `template.render` and `encode_rendered`.
    """
    ids: list[int] = ChatReader(tokenizer, template).prompt(messages)[1].ids.tolist()
    return ids
