"""Training on rewards: draw answers, score them in a separate process, and compute the loss."""
