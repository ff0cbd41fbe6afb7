"""Weight types whose kernels take long to compile and that few files use: their tests are slow.

Each family keeps at least one type in the default suite.
"""

from __future__ import annotations

from typing import Any

import pytest

RARE = ("IQ1_S", "IQ1_M", "IQ2_XS", "IQ2_S", "IQ3_XXS", "TQ2_0", "Q1_0", "NVFP4")


def rare(name: str) -> Any:
    """Return a test's parameter, marked slow if it names a rare type."""
    words = name.replace(",", " ").split()
    marks = [pytest.mark.slow] if any(word in RARE for word in words) else []
    return pytest.param(name, marks=marks, id=name)
