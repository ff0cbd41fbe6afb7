"""Training on preferences, with the losses from `nbllama.objectives`."""
