"""Serve the page about a run to browsers on this machine during training (`--live`)."""
