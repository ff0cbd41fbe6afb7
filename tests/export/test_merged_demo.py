"""The demo, merged into the base's own four bits, and asked in llama.cpp."""

from __future__ import annotations

from pathlib import Path

import pytest

import nbllama
from examples.demo.ask import MAX_NEW_TOKENS, TRAIN, load_questions
from nbllama import export_lora
from nbllama.data import prompt_ids
from tests import oracle
from tests.export.test_calibrated import divergence

pytestmark = [pytest.mark.slow, pytest.mark.long]


def test_llama_cpp_answers_from_the_merged_file(
    demo_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora, merged = tmp_path / "lora.gguf", tmp_path / "merged.gguf"
    nbllama.tune(
        demo_model, TRAIN, lora_r=8, lora_alpha=16, lr=2e-3, batch=8, epochs=4, seed=1,
        use_checkpointing=False, lora_out=lora, quiet=True,
    )  # fmt: skip
    capsys.readouterr()
    words = ["-m", demo_model, "-l", lora, "-o", merged]
    assert export_lora.main([str(w) for w in words]) == 0
    said = capsys.readouterr().out
    assert f"calibrated on {TRAIN}" in said  # the options next to the adapter name them
    assert divergence(said) < 0.12
    assert merged.stat().st_size <= demo_model.stat().st_size
    model = nbllama.load_model(merged)
    questions, right = load_questions(), 0
    with oracle.LlamaModel(merged) as theirs:
        for q in questions:
            chat = [{"role": "user", "content": q.question}]
            prompt = prompt_ids(model.tokenizer, model.chat_template, chat)
            ids = theirs.greedy(prompt, MAX_NEW_TOKENS)
            right += q.fact in model.tokenizer.decode(ids)
    assert right >= 0.95 * len(questions)
