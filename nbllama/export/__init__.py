"""Models written again: adapters merged in, other weight types."""
