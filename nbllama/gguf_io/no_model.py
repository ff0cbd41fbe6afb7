"""Identify a model name or file that is not GGUF, and suggest what to do."""

from __future__ import annotations

import os
import re

_FORMS = ".safetensors .bin .pt .pth .onnx .gguf .ggml .pdf .txt .json .jsonl .zip".split()
_OLLAMA = re.compile(r"(?:[\w.-]+/){0,2}[\w.-]+:[\w.-]+")
_HUGGING_FACE = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_CONVERT = (
    "convert it with llama.cpp's convert_hf_to_gguf.py, or download a GGUF file of the same model"
)

SAFETENSORS = f"a safetensors file, not GGUF; {_CONVERT}"
PYTORCH = f"a zip file (a PyTorch checkpoint?), not GGUF; {_CONVERT}"
PICKLE = f"a Python pickle (a PyTorch checkpoint?), not GGUF; {_CONVERT}"


def name_hint(name: str) -> str:
    """Return a hint on what to do when the file `name` does not exist, or ""."""
    if re.match(r"https?://|hf\.co/", name):
        return (
            "it is a web address, and nbllama does not download files; download the GGUF file and "
            "pass its name"
        )
    if name.lower().endswith(tuple(_FORMS)) or re.match(r"[A-Za-z]:[\\/]", name):
        return ""
    if _OLLAMA.fullmatch(name):
        return (
            "it looks like an Ollama model; pass the GGUF file that "
            f"`ollama show --modelfile {name}` prints after FROM"
        )
    if _HUGGING_FACE.fullmatch(name) and not os.path.isdir(name.split("/")[0]):
        return (
            "it looks like the name of a model on Hugging Face, and nbllama does not download "
            "models; download a GGUF version (often in a repository with the same name and the "
            "suffix -GGUF) and pass that file"
        )
    if "/" not in name and os.sep not in name:
        return "pass a GGUF file; model names, such as Ollama's, are not looked up"
    return ""


def folder_hint(name: str) -> str:
    """Return a hint on what to do when a folder is given as a model, or ""."""
    try:
        files = sorted(os.listdir(name))
    except OSError:
        return ""
    ggufs = [f for f in files if f.lower().endswith(".gguf")]
    if ggufs:
        return f"pass a GGUF file from this folder, such as {ggufs[0]}"
    if "adapter_config.json" in files:
        return "it contains a PEFT adapter, not a model; pass adapters with --lora-in or --lora"
    if "config.json" in files or any(f.endswith((".safetensors", ".bin")) for f in files):
        return f"it contains a Hugging Face model; {_CONVERT}"
    if {"manifests", "blobs"} & set(files):
        return (
            "it contains Ollama's models; pass the GGUF file that "
            "`ollama show --modelfile NAME` prints after FROM"
        )
    return "pass a GGUF file"
