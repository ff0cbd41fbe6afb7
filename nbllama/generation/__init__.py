"""Text out of a model: sessions with a KV cache, samplers, and a context that is kept full."""
