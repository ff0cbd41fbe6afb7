"""The options of `python -m nbllama.finetune`, a group or two a file."""
