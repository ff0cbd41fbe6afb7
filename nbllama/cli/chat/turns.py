"""A chat: alternating messages, rendered with a template and encoded as in training."""

from __future__ import annotations

import re

from nbllama.cli.chat.talk import Talk
from nbllama.data.chat import prompt_ids
from nbllama.errors import DataError, UsageError
from nbllama.generation.predictor import ContextFull
from nbllama.options.chat import read_escapes
from nbllama.text.chat_template import ChatTemplate

_HELP = (
    "/clear starts a new chat; /exit or Ctrl-D ends the program; Ctrl-C stops an answer or, at the "
    "prompt, the program"
)
_LONE = re.compile("[\ud800-\udfff]")  # a byte that is not UTF-8
_EXIT = ("/exit", "/quit", "/bye")


def chat(talk: Talk, template: ChatTemplate) -> None:
    """Chat until the input ends or the context is full.

    The whole chat is rendered again in each turn, but the model processes only the tokens that
    follow the unchanged beginning. Messages that the template rejects, or that do not fit into the
    context, are left out. On a terminal, a message such as `/clear` is a command.
    """
    o, console = talk.options, talk.console
    messages: list[dict[str, str]] = []
    if o.system_prompt:
        system = read_escapes(o, o.system_prompt, "--system-prompt")
        messages.append({"role": "system", "content": system})
    stops = talk.stops(slack=0)
    _check_template(template, messages, talk)
    n_fixed = len(messages)
    first = talk.text
    if console.typed and not o.single_turn:
        console.note(f"type a message, or a command: {_HELP}")
    if first and o.display_prompt:
        console.write(f"> {first}\n", "prompt")
    while True:
        said = first or console.read("> ")
        if said is None:
            return
        if not said.strip():
            continue
        if console.typed and not first and re.fullmatch(r"/[a-z?]+", said):
            if said in _EXIT:
                return
            if said == "/clear":
                del messages[n_fixed:]
            console.note(_answer(said))
            continue
        if _LONE.search(said):
            console.note("error: the message is not UTF-8 and was ignored")
            continue
        try:
            user = {"role": "user", "content": said if first else read_escapes(o, said, "input")}
            _lay_out(talk, template, [*messages, user])
        except ContextFull as e:
            talk.tell(e)
            return
        except (DataError, UsageError) as e:
            if first:
                raise
            console.note(f"error: {e}; the message was ignored")
            continue
        first = ""
        talk.predictor.reset_sampler()
        answer, ending = talk.speak(stops, stoppable=True)
        console.end_line()
        if ending == "full" or o.single_turn:
            return
        if answer or ending != "interrupt":
            messages += [user, {"role": "assistant", "content": answer}]


def _check_template(template: ChatTemplate, messages: list[dict[str, str]], talk: Talk) -> None:
    """Report problems with the template before the user types anything.

    Prints a warning if the template leaves out the system message in `messages`. Raises
    `UsageError` if it leaves out the questions, and the errors of `template.render`.
    """
    text = template.render([*messages, {"role": "user", "content": "zqquestion"}], True)
    if "zqquestion" not in text:
        raise UsageError(
            "the chat template leaves out the questions; pass another one with --chat-template"
        )
    if any(m["content"].strip() not in text for m in messages):
        talk.console.note("warning: the chat template leaves out the system prompt")


def _answer(command: str) -> str:
    """Return a one-line reply to a command."""
    if command in ("/help", "/?"):
        return _HELP
    if command == "/clear":
        return "started a new chat"
    return (
        f"error: {command} is not a command ({_HELP}); to send it as a message, put a space "
        "before it"
    )


def _lay_out(talk: Talk, template: ChatTemplate, messages: list[dict[str, str]]) -> None:
    """Render the chat, and set the predictor's text to the result.

    Raises `DataError` if the template rejects a message, and `UsageError` if a message does not fit
    into the context.
    """
    predictor = talk.predictor
    ids = prompt_ids(talk.tokenizer, template, messages)
    if not predictor.tokens:
        talk.begin(ids)
    new = len(ids) - (predictor.n_read if talk.options.context_shift else 0)
    if new > talk.n_ctx - 4:
        raise UsageError(
            f"{new} tokens do not fit in the context of {talk.n_ctx} tokens; pass a larger "
            f"--ctx-size"
        )
    predictor.become(ids)
