"""One run of `nbllama.finetune`, from its options to its output files."""
