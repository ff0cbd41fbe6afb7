"""The output of `python -m nbllama.perplexity`: a progress line, and the final result."""

from __future__ import annotations

import sys
import time
from statistics import median

import numpy as np

from nbllama.arch import context_warnings
from nbllama.cli.lora_files import load_adapters
from nbllama.data.text_file import MAX_BYTES, decode_text
from nbllama.errors import UsageError, shown
from nbllama.evaluate.scores import (
    Compared,
    Mean,
    Reader,
    chunk_losses,
    chunks,
    compare_chunk,
    text_tokens,
)
from nbllama.lora.mix import mix
from nbllama.lora.pairs import Adapter
from nbllama.model.passes import Model, load_model
from nbllama.options.perplexity import Perplexity
from nbllama.report.log import duration
from nbllama.system.regular import read_whole

PERCENTILES = (99.9, 99.0, 95.0, 90.0, 50.0, 10.0, 5.0, 1.0)


def read_utf8(path: str) -> str:
    """Read a UTF-8 text file and remove any byte-order mark. Raises `UsageError` or `DataError`."""
    try:
        raw = read_whole(path, MAX_BYTES)
    except FileNotFoundError:
        raise UsageError(f"{shown(path, 400)}: no such file") from None
    except OSError as e:
        raise UsageError(f"{shown(path, 400)}: cannot be read: {e.strerror or e}") from None
    except ValueError as e:
        raise UsageError(f"{shown(path, 400)}: cannot be read: {e}") from None
    return decode_text(raw, path)


class Ticker:
    """A progress line on standard error: the chunk, the result so far, tokens/s and time left.

    On a terminal, the line is overwritten; elsewhere, a new line is printed every 10 %.
    """

    def __init__(self, total: int, n_ctx: int) -> None:
        self.total, self.n_ctx = total, n_ctx
        self._terminal = sys.stderr.isatty()
        self._times: list[float] = []
        self._last = time.monotonic()
        self._tenth = -1

    def __call__(self, done: int, text: str) -> None:
        """Show that `done` chunks are finished; `text` is the result so far."""
        now = time.monotonic()
        self._times.append(now - self._last)
        self._last = now
        usual = median(self._times[-11:])
        left = duration(usual * (self.total - done))
        line = f"[{done}/{self.total}] {text}  {self.n_ctx / usual:.0f} tokens/s  ETA {left}"
        if self._terminal:
            print(f"\r{line:<78}", end="", file=sys.stderr, flush=True)
        elif (tenth := 10 * done // self.total) > self._tenth:
            self._tenth = tenth
            print(line, file=sys.stderr)

    def close(self) -> None:
        """Erase the line if the output is a terminal."""
        if self._terminal:
            print(f"\r{'':78}\r", end="", file=sys.stderr, flush=True)


def _prepare(asked: Perplexity) -> tuple[Model, Adapter | None, list[np.ndarray]]:
    o = asked.options
    model = load_model(o.model)
    parts = load_adapters(asked.adapters, model.hp, model.shapes, print)
    for line in context_warnings(model.hp, o.ctx_size):
        print(line)
    ids = text_tokens(model.tokenizer, read_utf8(o.file), o.ctx_size, shown(o.file, 400))
    found = chunks(ids, o.ctx_size, model.tokenizer)
    found = found[: o.chunks] if o.chunks else found
    print(f"{shown(o.file, 400)}: {len(ids)} tokens, {len(found)} chunks of {o.ctx_size}")
    return model, mix(parts) if parts else None, found


def print_perplexity(asked: Perplexity) -> None:
    """Print the perplexity of a text, with its standard error."""
    model, adapter, found = _prepare(asked)
    reader = Reader(model, adapter, asked.options.ctx_size)
    ticker, losses = Ticker(len(found), asked.options.ctx_size), []
    try:
        for chunk in found:
            losses.append(chunk_losses(reader, chunk))
            so_far = Mean.of(np.concatenate(losses)).exp()
            ticker(len(losses), f"PPL {so_far.value:.4f}")
    finally:
        ticker.close()
    mean = Mean.of(np.concatenate(losses))
    ppl = mean.exp()
    print(f"loss {mean.value:.5f} +/- {mean.error:.5f} nats per token")
    print(f"Final estimate: PPL = {ppl.value:.4f} +/- {ppl.error:.5f}")


def print_divergence(asked: Perplexity) -> None:
    """Print statistics on how far the model diverges from the base model at each token."""
    o = asked.options
    model, adapter, found = _prepare(asked)
    other = load_model(o.base_model) if o.base_model else model
    if not _same_tokens(model, other):
        raise UsageError(
            f"--base-model {shown(o.base_model, 400)} has a different vocabulary; use a model with "
            "the same vocabulary"
        )
    base, reader = Reader(other, None, o.ctx_size), Reader(model, adapter, o.ctx_size)
    ticker, parts = Ticker(len(found), 2 * o.ctx_size), []
    try:
        for chunk in found:
            parts.append(compare_chunk(base, reader, chunk))
            ticker(len(parts), f"KL {Compared.joined(parts).kl.mean():.6f}")
    finally:
        ticker.close()
    print("\n".join(divergence_lines(Compared.joined(parts))))


def _same_tokens(a: Model, b: Model) -> bool:
    if a is b:
        return True
    one, two = (m.gguf.get("tokenizer.ggml.tokens", "strings", None) for m in (a, b))
    if one is None or two is None:
        return a.hp.n_vocab == b.hp.n_vocab
    return len(one) == len(two) and all(x == y for x, y in zip(one, two, strict=True))


def divergence_lines(c: Compared) -> list[str]:
    """Return the lines of the table that is printed at the end of a comparison."""
    ppl, base = Mean.of(c.other).exp(), Mean.of(c.base).exp()
    ratio, kl = Mean.of(c.other - c.base), Mean.of(c.kl)
    dp = 100 * (np.exp(-c.other) - np.exp(-c.base))
    same = Mean.of(100.0 * c.same_top)
    rows = [
        ("PPL", f"{ppl.value:.4f} +/- {ppl.error:.5f}"),
        ("PPL (base model)", f"{base.value:.4f} +/- {base.error:.5f}"),
        ("ln(PPL / base)", f"{ratio.value:.6f} +/- {ratio.error:.6f}"),
        ("Mean KLD", f"{kl.value:.6f} +/- {kl.error:.6f}"),
        ("Maximum KLD", f"{c.kl.max():.6f}"),
        *((f"{p:.1f}% KLD", f"{np.percentile(c.kl, p):.6f}") for p in PERCENTILES),
        ("Mean change in p", f"{dp.mean():.3f} %"),
        ("RMS change in p", f"{np.sqrt((dp**2).mean()):.3f} %"),
        ("Same top token", f"{same.value:.3f} +/- {same.error:.3f} %"),
    ]
    return [f"{name:17} {value}" for name, value in rows]
