"""The rows of the architecture table, one module per family."""
