"""The classroom notebook runs from top to bottom, and is kept without outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import ROOT

LESSON = ROOT / "docs" / "lesson.ipynb"


def test_the_notebook_has_no_outputs_and_says_what_to_see() -> None:
    notebook = json.loads(LESSON.read_text(encoding="utf-8"))
    texts = ["".join(cell["source"]) for cell in notebook["cells"]]
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"] and cell["execution_count"] is None
    assert sum("✎" in t for t in texts) >= 5
    assert sum("*Observation*" in t for t in texts) >= 5


@pytest.mark.slow
def test_every_cell_runs(demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = nbformat.read(LESSON, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    )
    client.execute()
    said = "".join(
        out.get("text", "")
        for cell in notebook.cells
        for out in cell.get("outputs", ())
        if out.output_type == "stream" and out.name == "stdout"
    )
    assert "30 blocks" in said and "largest gradient of A 0.0e+00" in said
    first, last = said.split("first five ")[1].split("\n")[0].split(", last five ")
    assert float(last) < 0.75 * float(first)
