"""Write models with merged adapters or with different weight types."""
