"""A step's micro-batches in blocks, which can be computed on many machines."""
