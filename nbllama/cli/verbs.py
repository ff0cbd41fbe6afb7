"""The verbs of the command `nbllama`: for each the module of its program, and what it does."""

from __future__ import annotations

VERBS: dict[str, tuple[str, str]] = {
    "finetune": ("nbllama.cli.finetune", "train a LoRA adapter on a GGUF model"),
    "show-data": ("nbllama.cli.show_data", "show what is trained in a file of training data"),
    "chat": ("nbllama.cli.chat.program", "complete a text, or chat with a model"),
    "verify": ("nbllama.cli.verify", "check what an adapter does, also in llama.cpp"),
    "perplexity": ("nbllama.cli.perplexity", "measure how well a model predicts a text"),
    "export-lora": ("nbllama.cli.export_lora", "merge adapters into a model"),
    "quantize": ("nbllama.cli.quantize", "write a model in another weight type"),
    "convert-lora": ("nbllama.cli.convert_lora", "convert an adapter to another file format"),
    "convert": ("nbllama.cli.convert", "rename the keys of a Baichuan model to those of llama"),
    "inspect": ("nbllama.cli.inspect", "show what is in a model, checkpoint or adapter"),
    "peek": ("nbllama.cli.peek", "show any tensor by name"),
    "gradcheck": ("nbllama.cli.gradcheck", "check the gradients of a model"),
    "report": ("nbllama.cli.report", "make the page about a run from its log"),
}
