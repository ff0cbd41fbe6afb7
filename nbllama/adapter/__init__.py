"""The three file formats of LoRA adapters, and what they have in common.

| module | format | read by |
|---|---|---|
| `gguf_lora` | today's GGUF adapter | llama.cpp since July 2024 |
| `ggla` | the old `.bin` | llama.cpp from 2023 to July 2024 |
| `peft` | a folder of `adapter_model.safetensors` and `adapter_config.json` | Hugging Face PEFT |

Each reader makes a `Stored` of a file, each writer a file of a `Stored`. The formats differ in the
factor by which a reader scales a pair: `Stored` keeps one for each pair, so that nothing is
rounded before a format leaves no choice.
"""

from __future__ import annotations
