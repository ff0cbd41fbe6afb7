"""One run of `nbllama.finetune`, from its options to the files that it leaves."""
