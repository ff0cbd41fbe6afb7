"""Blocks of micro-batches, which several machines can compute."""
