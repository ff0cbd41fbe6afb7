"""The three file formats of LoRA adapters, and the code that they share.

| module | format | read by |
|---|---|---|
| `gguf_lora` | the current GGUF format | llama.cpp since July 2024 |
| `ggla` | the old `.bin` format | llama.cpp from 2023 to July 2024 |
| `peft` | a folder with `adapter_model.safetensors` and `adapter_config.json` | Hugging Face PEFT |

Each reader converts a file to a `Stored`, and each writer writes a `Stored` to a file. The formats
differ in the factor by which pairs are scaled. `Stored` keeps one factor per pair, so that values
are rounded only if a format requires it.
"""

from __future__ import annotations
