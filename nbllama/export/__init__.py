"""Writing models with merged adapters or other weight types."""
