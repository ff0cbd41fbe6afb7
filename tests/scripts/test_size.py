"""scripts/size: the core is within its limit, and the script fails when it should."""

from __future__ import annotations

import pytest

from scripts import size


def test_the_limits_hold() -> None:
    assert size.main() == 0


def test_what_is_too_long_or_missing_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(size, "CORE_LIMIT", 1000)
    assert size.main() == 1
    assert "lines; the limit is 1000" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setitem(size.CORE, "more", ("opt.py",))
    assert size.main() == 1
    assert capsys.readouterr().err == (
        "error: opt.py is a part of the core, but there is no such file\n"
    )
    monkeypatch.undo()
    monkeypatch.setattr(size, "FILE_LIMIT", 280)
    assert size.main() == 1
    found = capsys.readouterr().err.splitlines()
    assert any(line.startswith("error: kernels/simd.py has ") for line in found)
    assert not any("model/block.py" in line for line in found)  # counted with the core


def test_a_file_that_is_no_longer_long_leaves_the_list(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(size.LONG, "errors.py", "a reason")
    assert size.main() == 1
    assert "errors.py is listed as long, but has" in capsys.readouterr().err
