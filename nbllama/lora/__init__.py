"""LoRA: which tensors can have a pair (`slots`), and the pairs of an adapter (`pairs`)."""
