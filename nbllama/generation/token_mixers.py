"""The phases of a token's program for blocks without attention (`nbllama.model.mixers`).

Running a token updates the states in place. `States.commit` replaces the arrays, after which
`renew` writes the new addresses to the tables.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nbllama.generation.states import States
from nbllama.generation.token_parts import ProgramParts
from nbllama.model.mixer_shapes import state_shapes
from nbllama.ops.op import check_output
from nbllama.ops.token import tables as kinds
from nbllama.ops.token.mixer_tasks import DELTA_PART
from nbllama.ops.token.tasks import GATE_PART


class TokenMixers:
    """The blocks without attention, their shared memory, and their states."""

    def __init__(self, parts: ProgramParts, states: States) -> None:
        self._parts, self._states = parts, states
        self._places: list[tuple[int, int, int, str]] = []  # kind, row, layer and name of a state
        self._version = -1
        hp = parts.hp
        sizes: dict[str, int] = {}
        if "conv" in hp.mixers:
            sizes |= {"bcx": 3 * hp.n_embd, "mixed": hp.n_embd}
        if of := hp.delta:
            sizes |= dict.fromkeys(("qkv", "turned"), of.n_qkv)
            sizes |= dict.fromkeys(("z", "o", "out"), of.n_values)
            sizes |= dict.fromkeys(("alpha", "beta"), of.heads)
            self._one = np.full(of.size, 1 / np.sqrt(of.size), np.float32)
        self._memory = {name: np.empty(n, np.float32) for name, n in sizes.items()}

    def add(self, layer: int) -> None:
        """Add the phases of a block, up to the residual stream that the feed-forward part reads."""
        kinds_of: dict[str, Callable[[int], None]] = {"conv": self._conv, "delta": self._delta}
        kinds_of[self._parts.hp.mixer_at(layer)](layer)

    def renew(self, tables: dict[str, np.ndarray]) -> None:
        """If the addresses of the states have changed, write them to the tables.

        Raises ValueError for states of a different model, or of several sequences.
        """
        if self._version == self._states.version:
            return
        for kind, row, layer, name in self._places:
            state = self._states.arrays(layer)[name]
            shape = (1, *state_shapes(self._parts.hp, layer)[name])
            check_output("token program", "state", state, shape)
            tables[kinds.TABLES[kind][0]]["state"][row] = state.ctypes.data
        self._version = self._states.version

    def _at(self, name: str) -> int:
        array = self._memory[name]
        return self._parts.write.floats(array, len(array))

    def _read(self, layer: int, *names: str) -> None:
        """Add the phases that prepare a block's input and multiply it by the named weights."""
        parts = self._parts
        memory = {name: "bcx" if name == "conv_in" else name for name in names}
        layers = parts.layers(layer, {name: self._memory[memory[name]] for name in names})
        norm = parts.hp.attn_norm and f"blk.{layer}.{parts.hp.attn_norm}"
        parts.reads(norm, [item.w for item in layers])
        parts.write.products(parts.norm, layers)

    def _state_phase(
        self, kind: int, tasks: int, row: tuple[float, ...], layer: int, name: str
    ) -> None:
        """Add a phase that uses a state; its address in `row` is 0 until `renew` sets it."""
        self._places.append((kind, len(self._parts.write.rows[kind]), layer, name))
        self._parts.write.phase(kind, tasks, [row])

    def _taps(self, layer: int, tensor: str, taps: int, width: int) -> int:
        w = self._parts.model.taps(f"blk.{layer}.{tensor}.weight")
        return self._parts.write.floats(w, taps, width)

    def _conv(self, layer: int) -> None:
        parts, n, taps = self._parts, self._parts.hp.n_embd, self._parts.hp.conv_taps
        self._read(layer, "conv_in")
        w = self._taps(layer, "shortconv.conv", taps, n)
        forms = parts.write.forms([parts.model.linear(layer, "conv_out")])
        row = (self._at("bcx"), w, 0, self._at("mixed"), n, taps, forms)
        self._state_phase(kinds.CONV, -(-n // GATE_PART), row, layer, "conv")
        parts.add(layer, "conv_out", self._memory["mixed"])

    def _delta(self, layer: int) -> None:
        parts, write, of = self._parts, self._parts.write, self._parts.hp.delta
        assert of is not None  # otherwise, the model has no delta-net blocks
        vectors, eps = parts.model.vectors, parts.hp.rms_eps
        self._read(layer, "qkv", "z", "alpha", "beta")
        w = self._taps(layer, "ssm_conv1d", of.taps, of.n_qkv)
        keys = 2 * of.key_heads
        one = write.floats(self._one, of.size)
        row: tuple[float, ...] = (
            self._at("qkv"), w, 0, self._at("turned"), of.n_qkv, of.taps, of.size, keys, one,
            eps / of.size,
        )  # fmt: skip
        self._state_phase(kinds.DELTA_CONV, keys + of.heads, row, layer, "conv")
        a, dt = (vectors[f"blk.{layer}.{name}"] for name in ("ssm_a", "ssm_dt.bias"))
        row = (
            self._at("turned"), self._at("alpha"), self._at("beta"), write.floats(a, of.heads),
            write.floats(dt, of.heads), 0, self._at("o"), of.heads, of.key_heads, of.size,
            float(1 / np.sqrt(np.float32(of.size))),
        )  # fmt: skip
        self._state_phase(kinds.DELTA, of.heads * -(-of.size // DELTA_PART), row, layer, "delta")
        norm = parts.bound.norm(f"blk.{layer}.ssm_norm.weight")
        forms = write.forms([parts.model.linear(layer, "ssm_out")])
        # tasks end at int8 block boundaries
        part = GATE_PART // of.size if GATE_PART % of.size == 0 else of.heads
        row = (
            self._at("o"), self._at("z"), write.floats(norm, of.size), self._at("out"), of.heads,
            of.size, eps, part, forms,
        )  # fmt: skip
        write.phase(kinds.DELTA_OUT, -(-of.heads // part), [row])
        parts.add(layer, "ssm_out", self._memory["out"])
