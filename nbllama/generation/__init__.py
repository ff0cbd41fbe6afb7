"""Text generation: sessions with a KV cache, samplers, and context shifts."""
