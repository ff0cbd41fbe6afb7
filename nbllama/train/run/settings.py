"""The settings of a run: the options that were given, and defaults that depend on the data.

`resolve` is a pure function, and `Settings.pairs` lists all the values that it chose.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

from nbllama.errors import UsageError
from nbllama.lora.slots import EVERY_SLOT
from nbllama.opt.names import OPTIMISERS
from nbllama.options.finetune.table import OPTIONS, Options
from nbllama.report.log import memory
from nbllama.train.run.defaults import DEFAULTS, context, decay_end, iterations, slot_ranks
from nbllama.train.run.layers import as_text, blocks
from nbllama.train.run.plan import WIDTH, with_plan

MOST_OFTEN = 5  # minimum number of iterations between two evaluations


@dataclass(frozen=True)
class Settings:
    """The options given for a run, and all values derived from them.

    Each derived value is named after its option. The options are described in docs/options.md.
    """

    options: Options
    data_kind: str
    n_iter: int  # number of iterations in this run
    last: int  # last iteration of this run, counted from the very first iteration
    threads: int
    seed: int
    ctx: int
    lora_r: int
    alpha: float  # the given value; the scale is alpha / r, or alpha / sqrt(r) with rslora
    lora_alpha: float  # converted, so that the scale is lora_alpha / r
    lora_layers: str
    ranks: dict[str, int]  # by slot name, for all slots
    adam_alpha: float
    adam_beta2: float
    warmup: int
    cos_decay_steps: int
    cos_decay_min: float
    template_date: str  # date passed to the chat template, or "" for plain text
    eval_every: int  # 0 means that there is nothing to evaluate
    notes: tuple[str, ...]  # messages for the user about these values

    def saved(self) -> dict[str, Any]:
        """Return the options to store in a checkpoint, by key and in the order of storage.

        Options that the objective does not use have no value and are left out.
        """
        rows = sorted((o.saved, o.dest) for o in OPTIONS if o.saved is not None)
        keys = [row.key or name for row, name in rows]
        return {key: value for key in keys if (value := self.value(key)) is not None}

    def value(self, name: str) -> Any:
        """Return the value of an option in this run, whether derived or given."""
        return getattr(self if name in _DERIVED else self.options, name)

    def _more(self) -> str:
        """Return a description of the adapter's unusual settings."""
        more = " rank-stabilised" if self.options.rslora else ""
        more += f", dropout {self.options.lora_dropout:g}" if self.options.lora_dropout else ""
        return more + (f", blocks {self.lora_layers}" if self.lora_layers != "all" else "")

    def _checkpointing(self) -> str:
        if self.options.activation_memory:
            return f"as needed to fit in {memory(self.options.activation_memory)}"
        return "on" if self.options.use_checkpointing else "off"

    def _size(self) -> str:
        if not self.options.packing:
            return f"{self.options.batch} x {self.options.grad_acc} samples"
        tokens = self.options.batch * self.ctx
        return f"whole samples, {tokens} x {self.options.grad_acc} tokens per step"

    def pairs(self, begin: int = 0, data: str = "") -> list[tuple[str, str]]:
        """Return (name, value) pairs to display.

        For `begin`, see `resolve`. `data` describes the data if their format is known.
        """
        o = self.options
        kind = data or ("plain text" if self.data_kind == "raw" else "records")
        on = {slot: rank for slot, rank in self.ranks.items() if rank}
        if set(on.values()) == {self.lora_r}:
            ranks = " ".join(on)
        else:
            ranks = " ".join(f"{slot}:{rank}" for slot, rank in on.items())
        low = o.adam_min_alpha + self.cos_decay_min * (self.adam_alpha - o.adam_min_alpha)
        restart = ""
        if o.enable_restart:
            restart = f", each restart multiplies the length by {o.cos_decay_restart:g}"
        fall = f"{o.lr_schedule} to {low:g} at iteration {self.cos_decay_steps}{restart}"
        if o.lr_schedule == "constant":
            fall = "constant"
        elif o.lr_schedule == "wsd":
            fall += f", decaying over the last {o.wsd_decay:g} of the schedule"
        ratio = f", B {o.loraplus_lr_ratio:g} x" if o.loraplus_lr_ratio != 1 else ""
        betas = f"betas {o.adam_beta1:g} {self.adam_beta2:g}"
        if not OPTIMISERS[o.optimizer].has_beta2:
            betas = f"momentum {o.adam_beta1:g}"
        return [
            ("data", kind),
            ("run", f"{self.n_iter} iterations of {self._size()}"),
            ("sample", f"at most {self.ctx} tokens"),
            ("adapter", f"r {self.lora_r}, alpha {self.alpha:g}{self._more()}, on {ranks}"),
            ("rate", f"{self.adam_alpha:g}, warm-up {0 if begin else self.warmup}, {fall}{ratio}"),
            (
                OPTIMISERS[o.optimizer].label,
                f"{betas}, decay {o.adam_decay:g}, clip {o.adam_gclip:g}",
            ),
            *([("compat", "as in the 2024 version of llama.cpp's finetune")] if o.compat else []),
            ("checkpointing", self._checkpointing()),
            ("threads", str(self.threads)),
            ("seed", str(self.seed)),
        ]


_DERIVED = {f.name for f in fields(Settings)}


def _check_experts(
    options: Options, ranks: Mapping[str, int], missing: Collection[str]
) -> list[str]:
    """Raise `UsageError` if pairs on experts are requested but not possible.

    Pairs are not possible if the model has no experts or other options rule them out. Returns a
    list with a message if experts have no pairs only because that is the default.
    """
    slots = [slot.name for slot in EVERY_SLOT if slot.kind == "experts"]
    if options.rank_experts and set(slots) <= set(missing):
        raise UsageError("--rank-experts: this model has no experts; leave it out or pass 0")
    if not any(ranks[name] for name in slots):
        if set(slots) <= set(missing) or options.rank_experts is not None:
            return []
        return ["routed experts have no pairs; --rank-experts adds a pair to each"]
    if options.lora_out.lower().endswith(".bin"):
        raise UsageError("--lora-out: a .bin file cannot store LoRA pairs on experts; use .gguf")
    if options.lora_dropout:
        raise UsageError(
            "--lora-dropout and --rank-experts cannot be combined; leave out one of them"
        )
    return []


def _check_old(options: Options) -> None:
    """Raise `UsageError` for an option that --compat or the old tool's checkpoint rules out."""
    for o in OPTIONS:
        # checkpoints of such runs store "all" for the layers, although the default is None
        if o.without is not None and getattr(options, o.dest) not in (o.without, o.default):
            raise UsageError(
                f"{o.names[0]}: the old finetune did not have this option; leave it out with "
                "--compat, and when resuming from a checkpoint of the old finetune"
            )


def resolve(
    options: Options,
    data_kind: str,
    n_samples: int,
    *,
    missing: Collection[str],
    cores: int,
    new_seed: int,
    done: int = 0,
    unscaled: bool = False,
    n_layer: int = 1,
    walk: Callable[[int], int] | None = None,
    begin: int = 0,
    n_embd: int = WIDTH,
) -> Settings:
    """Return the settings of a run.

    If the plan (`nbllama.train.run.plan`) has not yet been applied to `options`, it is applied
    first.

    Parameters
    ----------
    data_kind : str
        "raw" or "chat".
    n_samples : int
        Number of samples in the data set.
    missing : collection of str
        Slots for which the model has no tensor, such as `out` if the output layer is tied.
    cores : int
        Default for `--threads`.
    new_seed : int
        Seed to use for `--seed -1`.
    done : int
        Number of iterations completed in the checkpoint; the schedule continues after them.
    unscaled : bool
        Whether the run resumes from an old checkpoint, whose scale is 1 (as with `--compat`).
    n_layer, n_embd : int
        Number of blocks in the model, and its width.
    walk : callable, optional
        See `iterations`.
    begin : int
        Iteration after which the current decay began. Only the first decay, at 0, has a warm-up.

    Raises
    ------
    UsageError
        If options contradict each other.
    """
    if n_samples < 1:
        raise ValueError("the training data contain no samples")
    d = DEFAULTS[data_kind]
    options = with_plan(options, data_kind, n_samples, n_embd=n_embd)
    n_iter = iterations(options, data_kind, n_samples, walk)
    if not n_iter and not done:
        raise UsageError("--adam-iter 0: there is no checkpoint to resume from; use 1 or more")
    lora_r = d.lora_r if options.lora_r is None else options.lora_r
    alpha = d.alpha_per_r * lora_r if options.lora_alpha is None else options.lora_alpha
    notes = []
    # "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", Kalajdzievski 2023
    scaled = alpha * math.sqrt(lora_r) if options.rslora else alpha
    if options.compat or unscaled:
        _check_old(options)
        if alpha != lora_r:
            notes.append(
                f"--lora-alpha {alpha:g} is treated as {lora_r}: the old tool trained with scale 1 "
                "for any alpha"
            )
        alpha = scaled = lora_r
    ranks = slot_ranks(options, data_kind, lora_r, missing)
    if not any(ranks.values()):
        raise UsageError(
            "all --rank-... options are 0, so there is nothing to train; set at least one above 0"
        )
    notes += _check_experts(options, ranks, missing)
    rate = options.adam_alpha or 0.0  # filled in by the plan
    optimiser = OPTIMISERS[options.optimizer]
    beta2 = optimiser.beta2 if options.adam_beta2 is None else options.adam_beta2
    if options.adam_min_alpha > rate:
        raise UsageError(
            f"--adam-min-alpha {options.adam_min_alpha:g} is above --adam-alpha {rate:g}; use a "
            "lower value"
        )
    total = done + n_iter
    warmup = options.warmup
    if warmup is None:
        warmup = d.warmup if isinstance(d.warmup, int) else math.ceil(d.warmup * total)
    cosine = options.lr_schedule == "cosine"
    steps = decay_end(options, data_kind, total)
    floor = options.cos_decay_min
    if floor is None:
        floor = d.cos_decay_min if cosine else 0.0
    if options.enable_restart and not cosine:
        raise UsageError(
            f"--enable-restart requires --lr-schedule cosine, not {options.lr_schedule}"
        )
    if options.use_flash is not None:
        notes.append(
            "--use-flash and --no-flash have no effect: there is only one attention implementation"
        )
    if warmup > total and not begin:
        notes.append(
            f"the learning rate does not reach its peak: the warm-up lasts {warmup} iterations, "
            f"but the run has only {total}"
        )
    return Settings(
        options=options,
        data_kind=data_kind,
        n_iter=n_iter,
        last=total,
        threads=cores if options.threads is None else options.threads,
        seed=new_seed if options.seed < 0 else options.seed,
        ctx=context(options, data_kind),
        lora_r=lora_r,
        alpha=float(alpha),
        lora_alpha=float(scaled),
        lora_layers=as_text(blocks(options.lora_layers or "all", n_layer), n_layer),
        ranks=ranks,
        adam_alpha=rate,
        adam_beta2=beta2,
        warmup=warmup,
        cos_decay_steps=steps,
        cos_decay_min=floor,
        template_date=(options.template_date or "") if data_kind == "chat" else "",
        eval_every=options.eval_every or max(MOST_OFTEN, round(n_iter / 10)),
        notes=tuple(notes),
    )


def fresh_seed() -> int:
    """Return a random seed from 0 to 2^31 - 1, the range of `--seed` in the old tool."""
    return secrets.randbelow(2**31)
