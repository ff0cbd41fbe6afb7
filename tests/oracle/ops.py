"""Single ggml ops on the CPU.

`ggml("ggml_rms_norm", x, 1e-5)` runs one op on numpy arrays; `Graph` chains several. Shapes are
numpy's, which are ggml's `ne` reversed. A shape that ggml refuses ends the process (GGML_ASSERT).
"""

from __future__ import annotations

import ctypes as C
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.oracle.lib import MAX_DIMS, InitParams, Plan, Tensor, function
from tests.oracle.quant import row_bytes

_P = C.c_void_p
_T = C.POINTER(Tensor)

_init = function("ggml_init", _P, InitParams)
_free = function("ggml_free", None, _P)
_new_tensor = function("ggml_new_tensor", _T, _P, C.c_int, C.c_int, C.POINTER(C.c_int64))
_n_bytes = function("ggml_nbytes", C.c_size_t, _T)
_is_contiguous = function("ggml_is_contiguous", C.c_bool, _T)
_set_param = function("ggml_set_param", None, _T)
_new_graph = function("ggml_new_graph", _P, _P)
_expand = function("ggml_build_forward_expand", None, _P, _T)
_compute = function("ggml_graph_compute_with_ctx", C.c_int, _P, _P, C.c_int)
_plan = function("ggml_graph_plan", Plan, _P, C.c_int, _P)
_compute_plan = function("ggml_graph_compute", C.c_int, _P, C.POINTER(Plan))
_overhead = function("ggml_tensor_overhead", C.c_size_t)

_F32, _I32 = 0, 26
_READ = {_F32: np.float32, _I32: np.int32}


@dataclass(frozen=True)
class Raw:
    """Quantised weights: `data` holds the rows of an array of numpy shape `shape`."""

    type_id: int
    data: bytes
    shape: tuple[int, ...]


class Graph:
    """A ggml context and one graph; `with Graph() as g`. Memory is reserved, not touched."""

    def __init__(self, n_threads: int = 1, mem_size: int = 1 << 28) -> None:
        self.n_threads = n_threads
        self._context = _init(InitParams(mem_size, None, False))
        if not self._context:
            raise MemoryError("ggml_init failed")

    def tensor(self, array: np.ndarray | Raw, param: bool = False) -> Any:
        """A ggml tensor that holds a copy of a float32 or int32 array, or of quantised rows.

        Raises ValueError for other dtypes or for more than 4 dimensions.
        """
        if isinstance(array, Raw):
            rows = int(np.prod(array.shape[:-1]))
            if len(array.data) != rows * row_bytes(array.type_id, array.shape[-1]):
                raise ValueError(f"{len(array.data)} bytes are not {array.shape}")
            type_id, shape, data = array.type_id, array.shape, array.data
        else:
            kinds = {np.dtype(np.float32): _F32, np.dtype(np.int32): _I32}
            if array.dtype not in kinds:
                raise ValueError(f"dtype {array.dtype}, expected float32 or int32")
            type_id, shape, data = kinds[array.dtype], array.shape, array.tobytes()
        if not 1 <= len(shape) <= MAX_DIMS:
            raise ValueError(f"shape {shape} has no 1 to {MAX_DIMS} dimensions")
        ne = (C.c_int64 * len(shape))(*reversed(shape))
        t = _new_tensor(self._context, type_id, len(shape), ne)
        C.memmove(t.contents.data, data, len(data))
        if param:
            _set_param(t)
        return t

    def apply(self, name: str, *args: Any) -> Any:
        """Add op `name` (an exported C function); returns its result tensor, not yet computed.

        Arrays and `Raw` become tensors, int and bool C ints, float C floats, `c_int64` is
        itself, None a null tensor.
        """
        types: list[Any] = [_P]
        values: list[Any] = [self._context]
        for arg in args:
            if isinstance(arg, np.ndarray | Raw):
                arg = self.tensor(arg)
            kinds = {int: C.c_int, bool: C.c_int, float: C.c_float, C.c_int64: C.c_int64}
            types.append(kinds.get(type(arg), _T))
            values.append(arg)
        return function(name, _T, *types)(*values)

    def compute(self, *outputs: Any) -> list[np.ndarray]:
        """Compute tensors; returns float32 arrays (leading dimensions of size 1 are dropped)."""
        graph = _new_graph(self._context)
        for t in outputs:
            _expand(graph, t)
        if status := _compute(self._context, graph, self.n_threads):
            raise RuntimeError(f"ggml_graph_compute_with_ctx returned {status}")
        return [self.read(t) for t in outputs]

    def repeated(self, *outputs: Any) -> Callable[[], None]:
        """A function that computes tensors, any number of times, in memory made here: what
        `compute` does, without its preparation. For timing; `read` gives the results.
        """
        graph = _new_graph(self._context)
        for t in outputs:
            _expand(graph, t)
        plan = _plan(graph, self.n_threads, None)
        if not 1 <= plan.n_threads <= self.n_threads:  # fewer if the graph has less work
            raise RuntimeError(f"ggml_cplan is another structure: {plan.n_threads} threads")
        memory = np.empty(max(1, plan.work_size), np.uint8)
        plan.work_data = memory.ctypes.data

        def run(memory: np.ndarray = memory) -> None:
            if status := _compute_plan(graph, C.byref(plan)):
                raise RuntimeError(f"ggml_graph_compute returned {status}")

        return run

    def read(self, tensor: Any) -> np.ndarray:
        """Copy of a contiguous float32 tensor's values."""
        t = tensor.contents
        if t.type != _F32 or not _is_contiguous(tensor):
            raise ValueError("only contiguous float32 tensors can be read")
        shape = tuple(reversed(t.ne))
        while len(shape) > 1 and shape[0] == 1:
            shape = shape[1:]
        data = C.string_at(t.data, _n_bytes(tensor))
        return np.frombuffer(data, dtype=np.float32).reshape(shape).copy()

    def close(self) -> None:
        """Free all tensors; twice is harmless."""
        if self._context:
            _free(self._context)
        self._context = None

    def __enter__(self) -> Graph:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read_strided(tensor: Any) -> np.ndarray:
    """Copy of a float32 or int32 tensor's values, without leading dimensions of 1.

    Raises ValueError for another type.
    """
    t = tensor.contents
    if t.type not in _READ:
        raise ValueError(f"{t.name.decode()} has type {t.type}, neither float32 nor int32")
    shape, strides = tuple(reversed(t.ne)), tuple(reversed(t.nb))
    span = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 4
    memory = np.frombuffer(C.string_at(t.data, span), dtype=np.uint8)
    view = np.ndarray(shape, _READ[t.type], memory, strides=strides)
    lead = next((i for i, n in enumerate(shape[:-1]) if n > 1), len(shape) - 1)
    return view.reshape(shape[lead:]).copy()


def ggml(name: str, *args: Any) -> np.ndarray:
    """One op on arrays (see `Graph.apply`): its float32 result as a numpy array."""
    with Graph() as g:
        return g.compute(g.apply(name, *args))[0]


def mul_mat(weight: np.ndarray | Raw, x: np.ndarray) -> np.ndarray:
    """`ggml_mul_mat`: x [N, n_in] times weight [n_out, n_in] transposed, float32 [N, n_out]."""
    return ggml("ggml_mul_mat", weight, x).reshape(len(x), -1)


def mul_mat_back(weight: np.ndarray | Raw, dy: np.ndarray) -> np.ndarray:
    """Gradient of `mul_mat` for x, as ggml builds it: out_prod(weight, transposed dy).

    dy [N, n_out], weight [n_out, n_in]; float32 [N, n_in].
    """
    with Graph() as g:
        product = g.apply("ggml_out_prod", weight, g.apply("ggml_transpose", dy))
        return g.compute(product)[0].reshape(len(dy), -1)


def adamw_step(
    x: np.ndarray,
    grad: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    *,
    step: int,
    alpha: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`ggml_opt_step_adamw`, step counted from 1: new (x, m, v); decay is decoupled."""
    params = [alpha, beta1, beta2, eps, decay, 1 / (1 - beta1**step), 1 / (1 - beta2**step)]
    with Graph() as g:
        tm, tv = g.tensor(m), g.tensor(v)
        out = g.apply(
            "ggml_opt_step_adamw",
            g.tensor(x, param=True),
            grad,
            tm,
            tv,
            np.array(params, dtype=np.float32),
        )
        new_x = g.compute(out)[0]
        return new_x.reshape(x.shape), g.read(tm).reshape(x.shape), g.read(tv).reshape(x.shape)


def _check_tensor_size() -> None:
    # An object header of 32 bytes stands before each tensor.
    if _overhead() - 32 != C.sizeof(Tensor):
        raise RuntimeError(f"ggml_tensor has {_overhead() - 32} bytes, not {C.sizeof(Tensor)}")


_check_tensor_size()
