"""The verbs of the `nbllama` command, in their usual order of use, and aliases for them."""

from __future__ import annotations

# For each verb: the module that defines its `main` function, and a description.
VERBS: dict[str, tuple[str, str]] = {
    "finetune": ("nbllama.cli.finetune", "train a LoRA adapter on a GGUF model"),
    "show-data": ("nbllama.cli.show_data", "show which tokens a model would be trained on"),
    "report": ("nbllama.cli.report", "generate a page about a run from its log, or compare runs"),
    "chat": ("nbllama.cli.chat.converse", "chat with a model, with or without adapters"),
    "generate": ("nbllama.cli.chat.generate", "complete a prompt"),
    "verify": ("nbllama.cli.verify", "check the effect of an adapter in nbllama and llama.cpp"),
    "perplexity": ("nbllama.cli.perplexity", "measure how well a model predicts text"),
    "export-lora": ("nbllama.cli.export_lora", "merge adapters into a model"),
    "quantize": ("nbllama.cli.quantize", "convert a model to a different weight type"),
    "convert-lora": ("nbllama.cli.convert_lora", "convert an adapter to a different file format"),
    "convert": ("nbllama.cli.convert", "convert a Baichuan 7B model to the llama architecture"),
    "inspect": ("nbllama.cli.inspect", "show the contents of a model, checkpoint or adapter"),
    "peek": ("nbllama.cli.peek", "show any tensor by name"),
    "gradcheck": ("nbllama.cli.gradcheck", "check the gradients of a model"),
}

# Programs of llama.cpp and commands of other trainers, keyed by the verb that replaces them.
_ALSO = {
    "finetune": "llama-finetune train lora sft tune fine-tune qlora trainer",
    "show-data": "preprocess data dataset preview tokenize",
    "chat": "llama-cli llama-run run cli interactive talk conversation inference llama-server"
    " server serve",
    "generate": "llama-completion llama-simple completion complete predict main",
    "verify": "test validate check",
    "perplexity": "llama-perplexity ppl eval evaluate score",
    "export-lora": "llama-export-lora merge merge-lora fuse export lora-export",
    "quantize": "llama-quantize quantise quant",
    "convert-lora": "convert-lora-to-gguf",
    "convert": "convert-hf-to-gguf convert-llama-ggml-to-gguf",
    "inspect": "show info dump gguf-dump llama-gguf gguf",
    "peek": "tensors diff llama-eval-callback",
    "gradcheck": "grad-check",
}
ALSO = {name: verb for verb, names in _ALSO.items() for name in names.split()}
