"""Time left, the loss curve, and a metrics file that survives a bad disk."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
from pathlib import Path

import pytest

from nbllama.errors import OutputError
from nbllama.report.log import Eta, LossCurve, MetricsLog, StepRecord, duration, memory

RECORD = StepRecord(
    iter=12,
    n_iter=256,
    epoch=1,
    loss=3.25,
    lr=1e-3,
    grad_norm=0.5,
    tokens=1024,
    computed_tokens=600,
    tokens_per_s=200.0,
    seconds=5.12,
    rss_bytes=512_000_000,
)


def never(text: str) -> None:
    raise AssertionError(text)


def test_eta_is_the_median_of_recent_steps() -> None:
    eta = Eta(window=3)
    assert eta.seconds_left(5) is None
    eta.add(2.0)
    assert eta.seconds_left(5) == 10.0
    for seconds in (100.0, 2.0):  # one slow step changes nothing
        eta.add(seconds)
    assert eta.seconds_left(5) == 10.0
    for _ in range(3):  # a lasting change counts, old steps are dropped
        eta.add(4.0)
    assert eta.seconds_left(5) == 20.0
    assert eta.seconds_left(0) == 0.0


def test_sparkline_of_a_falling_loss() -> None:
    curve = LossCurve(width=8)
    assert curve.sparkline() == ""
    curve.add(5.0)
    assert curve.sparkline() == "▁"
    for i in range(1, 8):
        curve.add(5.0 - i / 2)
    assert curve.sparkline() == "█▇▆▅▄▃▂▁"


def test_sparkline_keeps_its_width_and_shape_in_a_long_run() -> None:
    curve = LossCurve(width=8)
    for i in range(10_000):
        curve.add(10_000.0 - i)
        assert len(curve.sparkline()) <= 8
    line = curve.sparkline()
    assert len(line) == 8
    assert sorted(line, reverse=True) == list(line)
    assert (line[0], line[-1]) == ("█", "▁")


def test_losses_that_are_not_finite_leave_no_mark() -> None:
    curve = LossCurve()
    for loss in (2.0, math.nan, math.inf, 1.0):
        curve.add(loss)
    assert curve.sparkline() == "█▁"


def test_metrics_are_json_lines_that_can_be_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics 模型.jsonl"
    log = MetricsLog(str(path), never)
    log.write(RECORD)
    wanted = dataclasses.asdict(RECORD)
    assert wanted.pop("measures") == {}  # they become separate keys
    assert wanted.pop("workers") == ()  # a key of runs on many machines only
    assert json.loads(path.read_text()) == wanted
    log.write(dataclasses.replace(RECORD, iter=13, loss=math.nan, grad_norm=math.inf, skipped=True))
    log.close()
    log.close()
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first["iter"] == 12
    assert (second["loss"], second["grad_norm"], second["skipped"]) == (None, None, True)
    keys = {"iter", "loss", "lr", "grad_norm", "tokens_per_s", "seconds"}
    assert keys <= first.keys()


def test_metrics_are_appended_after_a_line_that_a_kill_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for before, lines in (("", 1), ('{"iter": 1}\n', 2), ('{"iter": 1', 2)):
        path.write_text(before)
        log = MetricsLog(str(path), never)
        log.write(RECORD)
        log.close()
        got = path.read_text()
        assert got.startswith(before)
        assert len(got.splitlines()) == lines
        assert json.loads(got.splitlines()[-1])["iter"] == 12


def test_a_metrics_file_that_cannot_be_opened_is_told_before_training(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing" / "metrics.jsonl"):
        with pytest.raises(OutputError, match=r"^--log .*: "):
            MetricsLog(str(path), never)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_told_once_and_does_not_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbllama.report.log._opened", lambda path: io.FileIO(path, "ab"))
    told: list[str] = []
    log = MetricsLog("/dev/full", told.append)
    for _ in range(3):
        log.write(RECORD)
    log.close()
    assert len(told) == 1
    assert "training continues" in told[0]


def test_a_line_cut_by_a_full_disk_is_ended_when_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    told: list[str] = []
    log = MetricsLog(str(path), told.append)
    real = log._file

    class Short:
        """Accepts ten bytes, like a disk with ten free bytes."""

        def write(self, line: bytes) -> int:
            return real.write(line[:10])

    log._file = Short()  # type: ignore[assignment]
    log.write(RECORD)
    log._file = real
    log.write(RECORD)
    log.close()
    cut, whole = path.read_text().splitlines()
    assert cut == '{"iter": 1'
    assert json.loads(whole)["iter"] == 12
    assert len(told) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00:00"),
        (0.6, "0:00:01"),
        (61, "0:01:01"),
        (3599.7, "1:00:00"),
        (86399, "23:59:59"),
        (90000, "1 day 1:00:00"),
        (200000, "2 days 7:33:20"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_memory() -> None:
    assert memory(512_400_000) == "512 MB"
    assert memory(1_250_000_000) == "1.25 GB"
