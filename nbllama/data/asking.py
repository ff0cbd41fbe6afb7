"""Read and encode prompts from a file (see `nbllama.data.formats.prompt`)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nbllama.data.chat import ChatReader
from nbllama.data.columns import renamed
from nbllama.data.counts import Counts, count_message_keys
from nbllama.data.data_file import Bad, DataFile, Part
from nbllama.data.formats import Conversation, Style
from nbllama.data.formats.prompt import read
from nbllama.data.in_memory import entries_in_memory
from nbllama.data.names import prompt_names
from nbllama.data.parsed import Asked
from nbllama.data.prompts import Prompts, Question
from nbllama.data.records import read_files
from nbllama.data.spans import encode_parsed, encode_plain
from nbllama.data.wrapped import Entry
from nbllama.errors import DataError, NbllamaError, shown

if TYPE_CHECKING:
    from nbllama.text.chat_template import ChatTemplate
    from nbllama.text.tokenizer import Tokenizer

_CHUNK = 64  # chats to render per request

Records = Sequence[Mapping[str, Any] | str]
_Read = tuple[int, dict[str, Any], Conversation | str]


class PromptReader:
    """A reader for files of prompts.

    `columns` contains the names that the file uses for the keys of a prompt. `style` says how an
    instruction and its input are combined into one message. `skip_bad` skips and counts bad records
    instead of refusing the file. `parse_special` parses the control tokens that are spelled out in
    prompts without a template. For `system_as_user`, see `ChatReader`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        columns: Mapping[str, str],
        style: Style,
        skip_bad: bool = False,
        parse_special: bool = False,
        system_as_user: bool = False,
    ) -> None:
        self._tokenizer, self._columns, self._style = tokenizer, columns, style
        self._skip_bad, self._parse_special = skip_bad, parse_special
        self._system_as_user = system_as_user

    def open(
        self, path: str | os.PathLike[str], records: Records | None = None
    ) -> tuple[DataFile, list[_Read]]:
        """Return a `DataFile` with the bad records, and a list of the good records.

        Each entry in the list is (line, record, prompt). If `records` is given, it is used instead
        of the file. Raises `DataError` under the same conditions as `open_data`.
        """
        name = os.fspath(path)
        asked = Asked(None, self._columns, self._style, self._skip_bad)
        if records is None:
            files, notes = read_files(path, asked)
            found = [(file, held.entries, held.n_lines) for file, held in files]
        else:
            entries, notes = entries_in_memory(records), []
            found = [(name, entries, len(entries))]
        parts, every, first = [], list[Entry](), 1
        for file, held, n_lines in found:
            if held is None:
                raise DataError(
                    f"{shown(file, 400)} contains plain text, but --objective grpo requires "
                    "records with a prompt"
                )
            parts.append(Part(file, first))
            every += [Entry(first + line - 1, record) for line, record in held]
            first += n_lines
        several = tuple(parts) if len(parts) > 1 or parts[0].name != name else ()
        data = DataFile(name, "chat", "prompt", "", [], [], tuple(notes), several)
        good: list[_Read] = []
        counts = Counts.empty()
        for line, record in every:
            try:
                if isinstance(record, DataError):
                    raise record
                usual = prompt_names(renamed(record, self._columns), counts)
                good.append((line, record, read(usual, self._style)))
                count_message_keys(usual, counts)
            except DataError as e:
                self._bad(data, line, e)
        return data._replace(notes=(*notes, *counts.notes(chats=True))), good

    def load(
        self,
        data: DataFile,
        good: Sequence[_Read],
        template: ChatTemplate | None,
        *,
        n_ctx: int,
        group: int,
        most: int,
        refuse_long: bool = False,
    ) -> Prompts:
        """Encode the prompts that leave room for `most` answer tokens within `n_ctx` tokens.

        Longer prompts are skipped and counted, or refused if `refuse_long` is set. Raises
        `DataError`.
        """
        questions, n_long = [], 0
        reader = None
        if template is not None:
            reader = ChatReader(
                self._tokenizer, template, system_as_user=self._system_as_user, places=False
            )
        for line, record, prompt, ids in self._encoded(data, good, reader):
            if len(ids) + most > n_ctx + 1:
                if refuse_long:
                    raise DataError(
                        f"{data.where(line)}: the prompt ({len(ids)} tokens) and an answer of "
                        f"{most} tokens do not fit in the context of {n_ctx} tokens; pass a larger "
                        "--ctx"
                    )
                n_long += 1
                continue
            questions.append(
                Question(
                    ids, _as_given(prompt), record, data.short_place(line),
                    not isinstance(prompt, str),
                )
            )  # fmt: skip
        notes = list(data.notes)
        if data.bad:
            data.bad.sort()
            n = len(good) + len(data.bad)
            notes.append(
                f"{len(data.bad)} of {n} records are bad and were skipped; first: "
                f"{data.short_place(data.bad[0].line)}: {data.bad[0].reason}"
            )
        if n_long:
            notes.append(
                f"{n_long} of {len(good)} prompts were skipped because they do not fit in the "
                f"context of {n_ctx} tokens together with an answer of {most} tokens"
            )
        if not questions:
            raise DataError(f"{shown(data.path, 400)} contains no usable prompts"
                            + (f": {notes[-1]}" if notes else ""))  # fmt: skip
        if reader is not None:
            reader.notices.empty_thoughts = 0  # the stand-in is not trained on
            notes += reader.notes(len(questions), len(questions))
        return Prompts(tuple(questions), group, most, n_ctx, tuple(notes))

    def _encoded(
        self, data: DataFile, good: Sequence[_Read], reader: ChatReader | None
    ) -> Iterator[tuple[int, dict[str, Any], Conversation | str, np.ndarray]]:
        for at in range(0, len(good), _CHUNK):
            chunk = good[at : at + _CHUNK]
            chats = [prompt for _, _, prompt in chunk if isinstance(prompt, Conversation)]
            if chats and reader is None:
                raise DataError(
                    f"{shown(data.path)} contains chats, but the model has no chat template"
                )
            rendered = iter(reader.render(chats) if reader is not None and chats else [])
            for line, record, prompt in chunk:
                try:
                    if isinstance(prompt, str):
                        ids = self._text(prompt)
                    else:
                        assert reader is not None
                        row = reader.rows(next(rendered), line)[-1]
                        ids = row.ids[: int(np.argmax(row.trained))]
                    if not len(ids):
                        raise DataError("the prompt has no tokens")
                except NbllamaError as e:
                    self._bad(data, line, e)
                    continue
                yield line, record, prompt, ids.astype(np.int32)

    def _text(self, prompt: str) -> np.ndarray:
        """Encode text without a template, as if it were the start of a sample."""
        encode = encode_parsed if self._parse_special else encode_plain
        ids, bos = encode(self._tokenizer, prompt).ids, self._tokenizer.bos_id
        if self._tokenizer.add_bos and bos is not None and ids[:1].tolist() != [bos]:
            ids = np.append(np.int32(bos), ids)
        return ids

    def _bad(self, data: DataFile, line: int, error: NbllamaError) -> None:
        if not (self._skip_bad and isinstance(error, DataError)):
            raise type(error)(f"{data.where(line)}: {error}") from error.__cause__
        data.bad.append(Bad(line, str(error)))


def _as_given(prompt: Conversation | str) -> Any:
    """Return a prompt in the form that the reward receives: a string or messages."""
    return prompt if isinstance(prompt, str) else prompt.messages[:-1]
