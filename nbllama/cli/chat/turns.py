"""A chat: alternating messages, rendered with a template and encoded as in training."""

from __future__ import annotations

from nbllama.cli.chat.talk import Talk
from nbllama.data.chat import prompt_ids
from nbllama.errors import DataError, UsageError
from nbllama.generation.predictor import ContextFull
from nbllama.options.chat import read_escapes
from nbllama.text.chat_template import ChatTemplate


def chat(talk: Talk, template: ChatTemplate) -> None:
    """Chat until the input ends or the context is full.

    Each turn renders the whole chat again, but the model processes only the tokens that follow the
    unchanged beginning. A message that the template rejects, or that does not fit into the context,
    is left out.
    """
    o, console = talk.options, talk.console
    messages: list[dict[str, str]] = []
    if o.system_prompt:
        system = read_escapes(o, o.system_prompt, "--system-prompt")
        messages.append({"role": "system", "content": system})
    stops = talk.stops(slack=0)
    # Template errors are reported before the user types anything.
    template.render([*messages, {"role": "user", "content": "x"}], True)
    first = talk.text
    if first and o.display_prompt:
        console.write(f"> {first}\n", "prompt")
    while True:
        said = first or console.read("> ")
        if said is None:
            return
        if not said.strip():
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


def _lay_out(talk: Talk, template: ChatTemplate, messages: list[dict[str, str]]) -> None:
    """Set the text of the predictor to the rendered chat.

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
