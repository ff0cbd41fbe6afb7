"""LoRA: which tensors can have a pair (`slots`), and an adapter's pairs (`pairs`)."""
