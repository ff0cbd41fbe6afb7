"""Files given as a model that are not models: one line says what they are and what to do."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from nbllama.errors import GGUFError
from nbllama.gguf_io import open_gguf


def refusal(name: str | Path) -> str:
    with pytest.raises(GGUFError) as caught:
        open_gguf(name)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("name", ["llama3:8b", "library/qwen2.5:0.5b-instruct", "me/x:latest"])
def test_ollama(name: str) -> None:
    line = refusal(name)
    assert "looks like an Ollama model" in line and f"ollama show --modelfile {name}" in line


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.2-1B", "Qwen/Qwen2.5-0.5B-Instruct-GGUF"])
def test_hugging_face(name: str) -> None:
    line = refusal(name)
    assert "looks like the name of a model on Hugging Face" in line and "a GGUF version" in line


def test_other_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert refusal("none.gguf").endswith("No such file or directory")
    assert refusal("models/none").endswith("No such file or directory")  # a folder that is there
    assert refusal("C:\\models\\x").endswith("No such file or directory")
    assert "pass a GGUF file" in refusal("mistral")
    assert "a web address" in refusal("https://example.org/x.gguf")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["config.json", "model-00001-of-00002.safetensors"], "convert_hf_to_gguf.py"),
        (["pytorch_model.bin"], "a Hugging Face model; convert it"),
        (["adapter_config.json", "adapter_model.safetensors"], "a PEFT adapter, not a model"),
        (["config.json", "b.gguf", "a.gguf"], "pass a GGUF file from this folder, such as a.gguf"),
        (["blobs", "manifests"], "Ollama's models"),
        ([], "a directory, not a regular file; pass a GGUF file"),
    ],
)
def test_folders(tmp_path: Path, files: list[str], says: str) -> None:
    for file in files:
        (tmp_path / file).touch()
    assert says in refusal(tmp_path)


def test_files_of_other_programs(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"format": "pt"}}).encode().ljust(64)
    for content, says in (
        (struct.pack("<Q", 64) + header, "a safetensors file, not GGUF; convert it with llama.cpp"),
        (b"PK\x03\x04" + bytes(60), "a PyTorch checkpoint?), not GGUF; convert it"),
        (b"\x80\x02}q\x00." + bytes(60), "a Python pickle"),
    ):
        (tmp_path / "model.safetensors").write_bytes(content)
        assert says in refusal(tmp_path / "model.safetensors")
