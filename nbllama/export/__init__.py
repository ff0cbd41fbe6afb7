"""Write models with merged adapters or different weight types."""
