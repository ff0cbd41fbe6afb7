"""Code books of the IQ types and of MXFP4, read from the `gguf` package at run time.

In an IQ type, a code is the index of a row of 8 (IQ1, IQ2) or 4 (IQ3) small integers. The rows are
concatenated into a flat uint8 array (in two's complement), so kernels can read rows in the same way
as blocks. Numba compiles these arrays into the machine code as constants. A module that uses code
books is imported only when a file contains one of its types.
"""

from __future__ import annotations

import numpy as np
from gguf import quants


def _grid(kind: type) -> np.ndarray:
    """Return the rows of a code book as one flat uint8 array `[n_rows * row_length]`."""
    kind.init_grid()  # type: ignore[attr-defined]
    rows: np.ndarray = kind.grid  # type: ignore[attr-defined]
    return rows.astype(np.int8).reshape(-1).view(np.uint8)


IQ1 = _grid(quants.IQ1_S)
"""2048 rows of 8 values from {-1, 0, 1}; llama.cpp: `iq1s_grid`."""
IQ2_XXS = _grid(quants.IQ2_XXS)
"""256 rows of 8 values from {8, 25, 43}; llama.cpp: `iq2xxs_grid`."""
IQ2_XS = _grid(quants.IQ2_XS)
"""512 rows of 8 values from {8, 25, 43}; llama.cpp: `iq2xs_grid`."""
IQ2_S = _grid(quants.IQ2_S)
"""1024 rows of 8 values from {8, 25, 43}; llama.cpp: `iq2s_grid`."""
IQ3_XXS = _grid(quants.IQ3_XXS)
"""256 rows of 4 values from {4, 12, ... 52, 62}; llama.cpp: `iq3xxs_grid`."""
IQ3_S = _grid(quants.IQ3_S)
"""512 rows of 4 values from {1, 3, ... 15}; llama.cpp: `iq3s_grid`."""
SIGNS = np.frombuffer(quants.IQ2_XXS.ksigns, dtype=np.uint8)
"""128 bytes, each with seven sign bits and an eighth for even parity; llama.cpp `ksigns_iq2xs`."""
IQ4 = np.array(quants.IQ4_NL.kvalues, dtype=np.int8).view(np.uint8)
"""The 16 values of an IQ4_NL or IQ4_XS code, denser near zero; llama.cpp `kvalues_iq4nl`."""
MXFP4 = np.array(quants.MXFP4.kvalues, dtype=np.int8).view(np.uint8)
"""The 16 values of a four-bit float (sign 1, exponent 2, mantissa 1), times 2.

llama.cpp: `kvalues_mxfp4`.
"""
