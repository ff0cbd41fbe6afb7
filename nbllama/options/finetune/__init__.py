"""The options of `python -m nbllama.finetune`, with one or two groups of options per file."""
