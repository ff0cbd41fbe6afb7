"""Blocks of micro-batches, whose computation can be distributed over several machines."""
