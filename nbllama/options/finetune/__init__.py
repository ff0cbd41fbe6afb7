"""The options of `python -m nbllama.finetune`, one or two groups per file."""
