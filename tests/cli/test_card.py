"""`--card`: what is written beside the adapter, and a user's own file that is kept."""

from __future__ import annotations

from pathlib import Path

from nbllama.finetune import main
from tests.toy_models import make_llama
from tests.toy_runs import toy_text, words


def test_card_and_modelfile(tmp_path: Path, capfd: object) -> None:
    make_llama(tmp_path / "toy.gguf")
    toy_text(tmp_path / "text.txt")
    assert main(words(tmp_path, "--card")) == 0
    adapter = tmp_path / "lora-LATEST.gguf"
    card = (tmp_path / "lora-LATEST.card.md").read_text(encoding="utf-8")
    for said in ("| file | toy.gguf |", "text.txt", "| loss | ", "| adam-iter | 4 |", str(adapter)):
        assert said in card, said
    lines = (tmp_path / "lora-LATEST.Modelfile").read_text(encoding="utf-8").splitlines()
    assert lines[1:] == [f"FROM {tmp_path / 'toy.gguf'}", f"ADAPTER {adapter}"]
    (tmp_path / "lora-LATEST.card.md").write_text("mine", encoding="utf-8")
    assert main(words(tmp_path, "--card")) == 0  # ours are replaced, theirs is kept
    assert (tmp_path / "lora-LATEST.card.md").read_text(encoding="utf-8") == "mine"
