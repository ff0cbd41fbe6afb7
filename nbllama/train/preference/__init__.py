"""Training on preferences: the losses of `nbllama.objectives` in a run."""
