"""Blocks of micro-batches, which can be computed on several machines."""
