"""Dumps of selected training iterations: `--dump STEP:PATTERN`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from nbllama.errors import OutputError, shown
from nbllama.options.steps import parse_steps
from nbllama.peek import names
from nbllama.peek.dump import Dump
from nbllama.peek.names import Patterns
from nbllama.peek.watcher import Watcher, all_names
from nbllama.train.trainer import Trainer

PLACEHOLDER = "ITERATION"


class Dumps:
    """The dumps requested with `--dump`; the run continues if a file cannot be written.

    `asked` contains the values of `--dump`. `out` is the file name, in which ITERATION is replaced
    by the iteration number. `say` receives a message for each file. Raises `UsageError` if a
    pattern matches nothing.
    """

    def __init__(
        self, asked: Sequence[str], out: str, trainer: Trainer, say: Callable[[str], None]
    ) -> None:
        self._trainer, self._out, self._say = trainer, out, say
        self._asked = [(steps, Patterns([text])) for steps, text in map(parse_steps, asked)]
        if self._asked:
            every = all_names(trainer.model, trainer.adapter)
            for _, patterns in self._asked:
                names.check(patterns, every)

    @contextmanager
    def at(self, iteration: int) -> Iterator[None]:
        """If a dump of this iteration was requested, dump the step performed inside the context."""
        texts = [t for steps, own in self._asked if iteration in steps for t in own.texts]
        if not texts:
            yield
            return
        trainer = self._trainer
        model, adapter = trainer.model, trainer.adapter
        dump = Dump(about={"model": model.gguf.path, "iteration": iteration})
        watcher = Watcher(model, Patterns(texts), dump)
        watcher.take_weights()
        watcher.take_parameters(adapter)
        model.watch = watcher
        try:
            yield
        finally:
            model.watch = None
        watcher.finish(trainer.opt)
        watcher.take_parameters(adapter, ".after")
        path = self._out.replace(PLACEHOLDER, str(iteration), 1)
        try:
            dump.save(path)
        except OutputError as e:
            self._say(f"the dump of iteration {iteration} was not written: {e}")
            return
        more = f"; {len(watcher.left_out)} more exceeded the size limit" if watcher.left_out else ""
        self._say(f"dump of iteration {iteration}: {len(dump)} arrays in {shown(path, 400)}{more}")
