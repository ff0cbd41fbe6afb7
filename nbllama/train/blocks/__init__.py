"""Blocks of micro-batches, whose computation can be distributed across several machines."""
