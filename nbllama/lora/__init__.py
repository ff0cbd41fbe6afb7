"""LoRA: which tensors can carry a pair (`slots`), and the pairs of an adapter (`pairs`)."""
