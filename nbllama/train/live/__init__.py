"""Measurements and answers of a run with `--live`, and its page; no bit of the run changes."""
