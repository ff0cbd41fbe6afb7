"""Training on rewards: answers are drawn, scored in another process, and become a loss."""
