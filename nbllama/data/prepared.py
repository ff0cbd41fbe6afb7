"""Chats in the form that the chat template receives."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from nbllama.data.formats import Message
from nbllama.data.formats.joined import as_numbered
from nbllama.errors import DataError, MessageError, NbllamaError
from nbllama.text.chat_template import chat_variables

if TYPE_CHECKING:
    from nbllama.text.sandbox import Chat


class Prepared(NamedTuple):
    """A chat in the form that the template receives.

    `numbers` contains the indices of the answers that are trained on. `found` counts notices by
    kind (`nbllama.data.notices.READ`). Message i of this chat is message i + `shift` of the record.
    """

    messages: list[Message]
    numbers: list[int]
    tools: list[Any] | None
    variables: dict[str, Any] | None
    found: Counter[str]
    shift: int = 0

    def numbered(self, error: MessageError) -> DataError:
        """Return an error in which the messages have their numbers in the record."""
        return DataError(error.counted(self.shift) + as_numbered(self.found))

    @property
    def request(self) -> Chat:
        """The rendering request, with cuts before and after each trained answer."""
        cuts = [cut for i in self.numbers for cut in ((i, True), (i + 1, False))]
        last = self.numbers[-1] + 1
        return self.messages[:last], cuts, chat_variables(self.tools, self.variables)


# A chat and the texts of the cuts in its request, or the template's error.
Rendered = tuple[Prepared, list[str]] | NbllamaError
