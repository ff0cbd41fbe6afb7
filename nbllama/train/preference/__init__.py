"""Training on preferences with the losses in `nbllama.objectives`."""
