"""Print samples and statistics of training data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from nbllama.cli.spread import Choice, spread
from nbllama.data import NOT_TRAINED, Batch, DataFile, Dataset, Samples, find_splits
from nbllama.data.counts import READ_LINE
from nbllama.data.data_file import place_in
from nbllama.data.judged import PAIRS
from nbllama.data.kinds import kind_of_sample
from nbllama.data.statistics import Statistics, described, statistics, utilisation
from nbllama.errors import shown
from nbllama.gguf_io import open_gguf
from nbllama.options.show_data import ShowOptions
from nbllama.text import Tokenizer, tokenizer_from_gguf
from nbllama.text.characters import character_groups
from nbllama.train.run.data import load_file
from nbllama.train.run.defaults import context

OPEN, CLOSE = "«", "»"  # marks around trained tokens if there are no colours
_TRAINED = ("bold green underline", "bold bright_green underline")
_GIVEN = ("default", "cyan")
_SPECIAL = "magenta"
_SHOWN = 3  # samples to show by default
_BARS = 40  # characters in the longest bar of the histogram


def show(options: ShowOptions, console: Console | None = None) -> None:
    """Print the samples or statistics that `options` request.

    Raises `DataError`, `GGUFError` and `UsageError`.
    """
    console = console or Console(highlight=False, stderr=options.json)

    def say(line: str) -> None:
        console.print(Text(line), soft_wrap=True)

    path, *_, note = find_splits(options.train_data)
    if note:
        say(note)
    with open_gguf(options.model_base) as file:
        tokenizer = tokenizer_from_gguf(file)
    files: list[DataFile] = []
    data = load_file(
        path, options, tokenizer, say=say, keep_texts=options.json, opened=files.append
    )  # fmt: skip
    say(f"{shown(path)}: {described(data)}")
    if isinstance(data, Samples) and data.read:
        say(data.read)
    if options.json:
        n = data.n_samples if options.samples is None else _rows(data, options.samples)
        for i in range(n):
            print(json.dumps(sample_object(tokenizer, data, i), ensure_ascii=False))
    else:
        console.print(_legend(console.color_system is not None), soft_wrap=True)
        for i, why in _chosen(data, files[0], options.samples):
            console.rule(_title(data, i, why), style="dim")
            console.print(sample_text(tokenizer, data.batch([i]), console.color_system is not None))
        console.rule(style="dim")
    for note in data.notes:
        if not note.startswith(READ_LINE):  # already shown in the first lines
            say(note)
    for line in statistics_lines(data, context(options, data.kind), options.batch):
        say(line)


def sample_object(tokenizer: Tokenizer, data: Dataset, i: int) -> dict[str, Any]:
    """Return a sample as an object for `--json`.

    The keys are "line" (the line number; null for plain text), "file" (if there are several
    files), "text", "side" (chosen or rejected for preferences; good or bad for labelled answers),
    "trained" (ranges [start, end) of characters in the text), "ids", and "trained_ids" (ranges
    [start, end) of indices into "ids").
    """
    batch = data.batch([i])
    # The input does not contain the last target.
    ids = [*batch.tokens.tolist(), int(batch.targets[-1])]
    trained = np.array([False, *(batch.targets != NOT_TRAINED)])
    if not trained[-1]:
        ids, trained = ids[:-1], trained[:-1]
    ranges = np.flatnonzero(np.diff(trained, prepend=False, append=False)).reshape(-1, 2).tolist()
    file = ""
    if isinstance(data, Samples):
        text, characters = data.texts[i]
        line = int(data.lines[i])
        if data.parts:
            file, line = place_in(data.parts, line)
    else:
        parts = [tokenizer.decode(ids[a:b], special=True) for a, b in ((0, 1), (1, len(ids)))]
        text, line = "".join(parts), None
        characters = [(len(parts[0]), len(text))]
    named = {"file": file} if file else {}
    side = {"side": _side(data, i)} if _side(data, i) else {}
    return named | {
        "line": line,
        **side,
        "text": text,
        "trained": [list(pair) for pair in characters],
        "ids": ids,
        "trained_ids": ranges,
    }


def sample_text(tokenizer: Tokenizer, batch: Batch, colours: bool) -> Text:
    """Return the text of a sequence (its input and its last target), with trained tokens marked."""
    ids = [*batch.tokens.tolist(), int(max(batch.targets[-1], 0))]
    trained = [False, *(batch.targets != NOT_TRAINED).tolist()]
    if not trained[-1]:
        ids, trained = ids[:-1], trained[:-1]
    out = Text()
    for number, (n, _, text) in enumerate(character_groups(tokenizer, ids, trained)):
        before = n > 0 and trained[n - 1]
        if not colours and trained[n] != before:
            out.append(OPEN if trained[n] else CLOSE)
        special = not tokenizer.token_bytes(ids[n], special=False)
        out.append(*_shown(text, number, trained[n], special))
    if not colours and trained[-1]:
        out.append(CLOSE)
    return out


def _shown(text: str, n: int, trained: bool, special: bool) -> tuple[str, str]:
    """Return the text and style of a token; styles alternate to make token boundaries visible."""
    style = (_TRAINED if trained else _GIVEN)[n % 2]
    lines = text.replace("\n", "⏎\n")
    safe = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in lines)
    return safe, f"{style} {_SPECIAL}" if special else style


def _legend(colours: bool) -> Text:
    if not colours:
        return Text(f"the model is trained on the tokens between {OPEN} and {CLOSE}")
    return Text.assemble(
        ("trained", _TRAINED[0]), " ", ("tokens", _TRAINED[1]), ", ",
        ("given", _GIVEN[0]), " ", ("tokens", _GIVEN[1]), ", ", ("special tokens", _SPECIAL),
    )  # fmt: skip


def _rows(data: Dataset, n: int) -> int:
    """Return the number of samples to show for `n` records; a pair consists of two samples."""
    pairs = isinstance(data, Samples) and data.format == PAIRS
    return min(2 * n if pairs else n, data.n_samples)


def _chosen(data: Dataset, file: DataFile, n: int | None) -> list[Choice]:
    """Choose the first `n` samples, or three of different kinds and the reason for each."""
    if n is not None or not isinstance(data, Samples) or data.records is None:
        return [Choice(i, "") for i in range(_rows(data, _SHOWN if n is None else n))]
    width = 2 if data.format == PAIRS else 1
    numbers, lengths = data.records[::width], data.lengths()[0]
    chosen = spread(
        lengths.reshape(-1, width).max(axis=1),
        lambda i: kind_of_sample(file.samples[int(numbers[i])][1]),
        _SHOWN,
    )
    return [Choice(width * c.number + j, c.why) for c in chosen for j in range(width)]


def _side(data: Dataset, i: int) -> str:
    """Return the side and the weight of sample `i`, or "" if the data contain no preferences."""
    if not isinstance(data, Samples) or data.judged is None:
        return ""
    names = ("chosen", "rejected") if data.format == PAIRS else ("good", "bad")
    weight = data.judged.weight[i]
    return names[0 if data.judged.good[i] else 1] + (f", weight {weight:g}" if weight != 1 else "")


def _title(data: Dataset, i: int, why: str) -> str:
    where = f"{data.place(i)}, " if isinstance(data, Samples) else ""
    where += f"{side}, " if (side := _side(data, i)) else ""
    return (
        f"sample {i + 1} of {data.n_samples}: {why + '; ' if why else ''}{where}"
        f"{data.n_tokens(i)} tokens, {data.n_trained(i)} trained"
    )


def statistics_lines(data: Dataset, n_ctx: int, batch: int) -> Iterator[str]:
    """Return lines with statistics about all samples."""
    s = statistics(data)
    yield f"samples     {s.n_samples}"
    yield (
        f"tokens      {s.tokens}: {s.shortest} to {s.longest} per sample, mean {s.mean:.1f}, "
        f"median {s.median:g}"
    )
    yield f"trained     {s.trained} tokens, {100 * s.trained_share:.1f} %"
    u = utilisation(data, n_ctx, batch)
    yield "row usage   " + ", ".join(
        f"{100 * share:.1f} % {what}"
        for share, what in (
            (u.to_context, f"if rows are padded to {n_ctx} tokens"),
            (u.to_longest, f"if padded to the longest of {batch} samples"),
            (u.packed, f"if packed into batches of {batch * n_ctx} tokens"),
        )
    )
    yield "            (nbllama itself never pads rows)"
    yield from _histogram(s)


def _histogram(s: Statistics) -> Iterator[str]:
    yield "length      samples"
    width = len(str(s.edges[-1]))
    for low, after, count in zip(s.edges, s.edges[1:], s.histogram, strict=False):
        bar = "█" * int(np.ceil(_BARS * count / max(s.histogram)))
        yield f"{low:>{width}} .. {after - 1:<{width}}  {count:>7} {bar}"
