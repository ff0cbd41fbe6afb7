"""Training on rewards: drawing answers, scoring them in a separate process, and the loss."""
