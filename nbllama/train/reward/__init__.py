"""Training on rewards: answers are drawn, scored in a separate process, and turned into a loss."""
