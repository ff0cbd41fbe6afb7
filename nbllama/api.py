"""The public functions for scripts.

They train, create, load and save adapters, and compute logits, losses, gradients and activations
as numpy arrays, with the same forward and backward passes as training.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nbllama.adapter import file as adapter_file
from nbllama.adapter.savable import Adapter
from nbllama.arguments import (
    described,
    enough_memory,
    file_name,
    instance,
    positive,
    token_ids,
    whole,
)
from nbllama.data.batch import NOT_TRAINED, Batch
from nbllama.errors import ArgumentError, UnknownSlot, UsageError
from nbllama.generation.arguments import check_adapter, check_model
from nbllama.lora import pairs
from nbllama.lora.pairs import init_adapter as new_adapter
from nbllama.lora.slots import EVERY_SLOT, SLOT_BY_NAME, without_tensor
from nbllama.model import gradients
from nbllama.model.bound import Bound
from nbllama.model.parts import BlockParts
from nbllama.model.passes import Model

if TYPE_CHECKING:
    from nbllama.generation.model import Model as WritingModel
    from nbllama.report.log import EvaluationRecord, StepRecord
    from nbllama.train.run.result import Run
    from nbllama.train.run.screen import Screen

Tokens = Sequence[int] | np.ndarray
MOST_RANK = 65536  # as for the options --lora-r and --rank-...


def tune(
    model: WritingModel | str | os.PathLike[str],
    data: str | os.PathLike[str] | Iterable[Mapping[str, Any] | str] | None,
    *,
    on_step: Callable[[StepRecord], object] | None = None,
    on_eval: Callable[[EvaluationRecord], object] | None = None,
    quiet: bool | None = None,
    screen: Screen | None = None,
    **options: Any,
) -> Run:
    """Train a LoRA adapter: `python -m nbllama.finetune` as a function.

    Data, options, defaults and errors are the same as in the program, and the adapter is
    bit-identical. However, a call writes no files and starts from the beginning unless an option
    names a file to write or to resume from.

    Parameters
    ----------
    model : Model or path
        A model from `load_model`, or a GGUF file.
    data : path or list
        A file or folder as for `--train-data`, or a list of records, each in the form of a line in
        a JSON lines file, such as `{"messages": [{"role": "user", "content": "..."}, ...]}`. If
        a record is a string, the model is trained on the whole text.
    on_step : callable, optional
        Called after each iteration with its `StepRecord` (`iter`, `n_iter`, `epoch`, `loss`, `lr`,
        `grad_norm`, `tokens_per_s`, ...). If it returns True, the run ends as with an early stop.
        If it raises an exception, the run ends without saving again.
    on_eval : callable, optional
        Called after each evaluation with its `EvaluationRecord` (`iter`,
        `val_loss`, `perplexity`, `train_loss`, `best`, `samples`).
    quiet : bool, optional
        True: show nothing. False: always show the run, on standard error. By default, a run shows a
        single, continually updated line in a notebook, the program's display if standard error is a
        terminal, and nothing otherwise.
    screen : Screen, optional
        An object with the methods of `nbllama.train.run.screen.Screen`, which receives all output.
    **options
        Any option of the program, with `_` instead of `-` in its name (docs/options.md), such as:

        epochs, adam_iter : int
            Length of the run.
        batch, grad_acc, ctx : int
            Samples per pass, passes per iteration, maximum sample length in tokens.
        lr : float
            Peak learning rate.
        lora_r, lora_alpha, lora_dropout, lora_layers
            Settings of the adapter.
        val_data, val_split, eval_every, early_stop
            Validation; `val_data` is a path or a list, like `data`.
        sample_prompts : path or list of str
            Prompts to answer at each evaluation.
        seed, threads : int
            The same seed gives bit-identical results with any number of threads.
        live : bool or int
            Serve the run's page to a browser on this machine, on any free port (True) or on the
            given one. The address is printed (to standard error if nothing else is shown).
        lora_out, checkpoint_out, log, report : path
            Files to write. ITERATION in the first two names is replaced with the iteration number.
        checkpoint_in : path
            Resume from this checkpoint; if the file does not exist, start from the beginning.

    Returns
    -------
    Run
        An object with `adapter`, `losses`, `val_losses`, `best`, `paths` and other attributes.

    Raises
    ------
    UsageError
        An option is unknown (the message suggests a similar one), or a value is invalid.
    DataError, GGUFError, CheckpointError
        A file or record cannot be used.
    OutputError, SaveFailed
        A file cannot be written.
    NotEnoughMemory, Diverged
        The run does not fit in memory, or its loss is not finite.

    Notes
    -----
    On Ctrl-C (in a notebook, an interrupt of the kernel), the run writes the files `lora_out` and
    `checkpoint_out`, issues a warning, and returns its results so far with `interrupted` set.
    Before the first iteration, a `KeyboardInterrupt` is raised. Ctrl-C does not reach a run outside
    the main thread; to stop such a run, return True from `on_step`.
    """
    from nbllama.cli.python_screen import screen_for
    from nbllama.train.run import python

    shown = screen_for(quiet) if screen is None else screen
    return python.tune(model, data, options, shown, on_step=on_step, on_eval=on_eval)


def _batch(
    model: Model, adapter: pairs.Adapter | None, tokens: Tokens, targets: Tokens | None = None
) -> Batch:
    """Check the arguments, and return a batch of one sequence.

    By default, the target of each token is the next token.
    """
    check_model(model)
    check_adapter(adapter)
    ids = _ids(model, "tokens", tokens, 0)
    if not len(ids):
        raise ArgumentError("tokens: the list is empty; pass at least one token id")
    if targets is None:
        after = np.append(ids[1:], np.int32(NOT_TRAINED))
    else:
        after = _ids(model, "targets", targets, NOT_TRAINED)
    return Batch.from_rows([(ids, after)])


def _ids(model: Model, name: str, ids: Tokens, lowest: int) -> np.ndarray:
    """Return ids as int32 `[N]`. Raises `ArgumentError` for ids that are not in the vocabulary."""
    wide = token_ids(name, ids)
    last = model.hp.n_vocab - 1
    if wide.min(initial=0) < lowest or wide.max(initial=0) > last:
        raise ArgumentError(f"a {name.removesuffix('s')} is outside {lowest}..{last}")
    return wide.astype(np.int32)


def logits(model: Model, tokens: Tokens, adapter: pairs.Adapter | None = None) -> np.ndarray:
    """Compute the logits after each token of a text, with or without an adapter.

    Parameters
    ----------
    model : Model
        The base model.
    tokens : sequence of int
        N token ids.
    adapter : Adapter, optional
        LoRA pairs to apply.

    Returns
    -------
    float32 array [N, V]
        Row i contains the logits for the token that follows token i.

    Raises
    ------
    ArgumentError
        A token is not a whole number or not in the vocabulary.
    """
    batch = _batch(model, adapter, tokens)
    bound, n = Bound(model, adapter), len(batch.tokens)
    acts = model.forward_activations(adapter, n)
    model.forward(bound, acts, batch)
    return model.logits(bound, acts.x(model.hp.n_layer, n))


def loss_and_gradients(
    model: Model,
    adapter: pairs.Adapter,
    tokens: Tokens,
    targets: Tokens | None = None,
    *,
    checkpointing: bool = False,
) -> tuple[float, dict[str, np.ndarray]]:
    """Compute the mean loss of one sequence, and its gradient with respect to each parameter.

    Parameters
    ----------
    model : Model
        The base model.
    adapter : Adapter
        The pairs whose gradients are computed.
    tokens : sequence of int
        Token ids.
    targets : sequence of int, optional
        The target id after each token, or -1 for none; by default, the next token.
    checkpointing : bool
        Keep only the inputs of the blocks and recompute the rest, which saves memory and does not
        change the result.

    Returns
    -------
    float
        Loss in nats per trained token.
    dict of str to float32 array
        The gradient for each parameter name, with the same shapes as `adapter.parameters()`.

    Raises
    ------
    ArgumentError
        A token is not a whole number or not in the vocabulary, or no position has a target.
    """
    instance(
        "adapter", adapter, pairs.Adapter, "pass an adapter, such as nbllama.init_adapter(model)"
    )
    batch = _batch(model, adapter, tokens, targets)
    if not batch.n_trained:
        raise ArgumentError("no position has a target")
    return gradients.loss_and_gradients(model, adapter, batch, checkpointing)


def trace(
    model: Model, tokens: Tokens, adapter: pairs.Adapter | None = None
) -> dict[str, np.ndarray]:
    """Return the activations of a forward pass by name, as copies.

    Parameters
    ----------
    model : Model
        The base model.
    tokens : sequence of int
        N token ids.
    adapter : Adapter, optional
        LoRA pairs to apply.

    Returns
    -------
    dict of str to float32 array
        `x` (block input) `[N, C]`, `q` `[N, H, D]`, `k`, `v` `[N, G, D]` after RoPE, `att`
        `[N, H, D]` (in blocks with attention), `x_mid` `[N, C]`, `gate` (empty if there is none),
        `up` `[N, F]`, each as `blk.I.NAME`; `x_out` `[N, C]` after the last block, `logits`
        `[N, V]`.

    Raises
    ------
    ArgumentError
        A token is not a whole number or not in the vocabulary.
    """
    batch = _batch(model, adapter, tokens)
    n, bound = len(batch.tokens), Bound(model, adapter, trained=adapter is not None)
    acts = model.activations(adapter, n, max(1, batch.n_trained), checkpointing=False)
    model.forward(bound, acts, batch)
    out = {}
    for layer in range(model.hp.n_layer):
        kept = BlockParts(model, layer, bound, acts, batch=batch).kept
        out[f"blk.{layer}.x"] = acts.x(layer, n).copy()
        attends = model.hp.mixer_at(layer) == "attention"
        for name in (*(("q", "k", "v", "att") if attends else ()), "x_mid", "gate", "up"):
            out[f"blk.{layer}.{name}"] = getattr(kept, name).copy()
    out["x_out"] = acts.x(model.hp.n_layer, n).copy()
    out["logits"] = model.logits(bound, out["x_out"])
    return out


def init_adapter(
    model: Model,
    rank: int = 4,
    alpha: float | None = None,
    *,
    ranks: dict[str, int] | None = None,
    seed: int = 0,
) -> Adapter:
    """Create an adapter for the linear layers of every block (B = 0, so it has no effect yet).

    Parameters
    ----------
    model : Model
        The base model.
    rank : int
        Rank of every pair.
    alpha : float, optional
        The pairs are scaled by alpha / rank; by default, alpha equals `rank`.
    ranks : dict of str to int, optional
        Ranks by slot (`nbllama.lora.slots.EVERY_SLOT`) that override `rank`; 0 disables a slot.
    seed : int
        Seed for the random numbers in A, from 0 to 2^64 - 1.

    Returns
    -------
    Adapter

    Raises
    ------
    UsageError
        The model has no tensor for a slot, or an argument is invalid.
    KeyError
        A name in `ranks` is not a slot.
    NotEnoughMemory
        The pairs do not fit in memory.
    """
    check_model(model)
    r = whole("rank", rank, 1, MOST_RANK)
    scale = float(r) if alpha is None else positive("alpha", alpha)
    seed = whole("seed", seed, 0, 2**64 - 1)
    missing = without_tensor(model.shapes)
    wanted = dict.fromkeys((slot.name for slot in EVERY_SLOT), 0)
    for slot in EVERY_SLOT:
        if slot.kind == "linear" and slot.in_block and slot.name not in missing:
            wanted[slot.name] = r
    wanted |= _ranks(ranks or {})
    with enough_memory("the pairs", "use a smaller rank"):
        made = new_adapter(model.hp, wanted, alpha=scale, lora_r=r, seed=seed, shapes=model.shapes)
    return Adapter.of(made, model.hp)


def _ranks(ranks: Mapping[str, int]) -> dict[str, int]:
    """Check the ranks by slot."""
    instance("ranks", ranks, Mapping, 'use a dict of ranks by slot, such as {"wq": 8}')
    for name in ranks:
        if name not in SLOT_BY_NAME:
            raise UnknownSlot(
                f"ranks: {described(name)} is not a slot; use {', '.join(SLOT_BY_NAME)}"
            )
    return {name: whole(f"ranks, {name}", r, 0, MOST_RANK) for name, r in ranks.items()}


def load_adapter(path: str | os.PathLike[str], model: Model) -> Adapter:
    """Read an adapter in any format.

    Parameters
    ----------
    path : str or path
        A GGUF adapter, a `.bin` file for llama.cpp versions from 2023, or a Hugging Face PEFT
        folder.
    model : Model
        The base model, which the pairs must match.

    Returns
    -------
    Adapter

    Raises
    ------
    CheckpointError
        The file is damaged, or does not match the model. If it does not exist, the error is also a
        `FileNotFoundError`.
    UsageError
        An argument is not a path or not a model.
    """
    if not isinstance(model, Model):
        raise UsageError("load_adapter(path, model): the second argument must be a model")
    name = file_name("path", path)
    return Adapter.of(adapter_file.load_adapter(name, model.hp, model.shapes), model.hp)


def save_adapter(path: str | os.PathLike[str], adapter: pairs.Adapter, model: Model) -> list[str]:
    """Write an adapter atomically.

    Parameters
    ----------
    path : str or path
        The name determines the format, as in `Adapter.save`: `.gguf` for llama.cpp, `.bin`,
        `FOLDER/`.
    adapter : Adapter
        The pairs.
    model : Model
        The base model.

    Returns
    -------
    list of str
        A line for each part of the adapter that readers of this format ignore or refuse.

    Raises
    ------
    OutputError
        The path cannot be written, or is a file of another kind, such as a model.
    UsageError
        The format cannot store this adapter.
    """
    check_model(model)
    instance(
        "adapter", adapter, pairs.Adapter, "pass an adapter, such as nbllama.init_adapter(model)"
    )
    return adapter_file.save_adapter(file_name("path", path), adapter, model.hp)
