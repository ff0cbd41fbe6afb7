"""One run of `nbllama.finetune`, from its options to the output files."""
