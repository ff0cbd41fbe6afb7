"""Complete text, either once or taking turns with a user."""

from __future__ import annotations

from nbllama.cli.chat.talk import Talk
from nbllama.options.chat import read_escapes

_INSTRUCTION, _RESPONSE = "\n\n### Instruction:\n\n", "\n\n### Response:\n\n"


def predict(talk: Talk) -> None:
    """Complete the prompt until the model ends the text.

    The text also ends at a reverse prompt, at the maximum length, or when the context is full.
    """
    talk.open(_prompt(talk))
    stops = talk.stops(slack=2)
    if not stops.met(talk.predictor.tokens) and talk.speak(stops, stoppable=False)[1] == "eog":
        talk.console.note("[end of text]")


def interact(talk: Talk) -> None:
    """Take turns with the user, reading input after each answer, reverse prompt or Ctrl-C."""
    o, console, predictor = talk.options, talk.console, talk.predictor
    prefix = read_escapes(o, o.in_prefix, "--in-prefix")
    suffix = read_escapes(o, o.in_suffix, "--in-suffix")
    stops = talk.stops(slack=0)
    if o.instruct:
        prefix, suffix = _INSTRUCTION, _RESPONSE
        stops = talk.stops(slack=0, more=[_INSTRUCTION.lstrip()])
    sign = "> " if o.instruct or o.conversation else ""
    prompt = _prompt(talk)
    users = o.interactive_first or not o.interactive
    if prompt or not users:
        talk.open(prompt)
    else:
        talk.begin([])
    users = users or stops.met(predictor.tokens)
    while True:
        if not users:
            ending = talk.speak(stops, stoppable=True)[1]
            if ending == "full":
                return
            if ending == "eog" and stops.texts:
                predictor.append(talk.ids(stops.texts[0]))
            if ending != "stop":
                console.end_line()
        if sign:
            console.end_line()
        else:
            console.write(prefix, "prompt")
        line = console.read(sign)
        if line is None:
            return
        predictor.reset_sampler()
        if line:
            if not sign:
                console.write(suffix, "prompt")
            said = talk.tokenizer.encode(read_escapes(o, line, "the input"))
            predictor.append([*talk.ids(prefix), *said, *talk.ids(suffix)])
        users = not predictor.tokens  # after an empty line, the model continues the text so far


def _prompt(talk: Talk) -> list[int]:
    return talk.tokenizer.encode(talk.text, add_special=True, parse_special=True)
