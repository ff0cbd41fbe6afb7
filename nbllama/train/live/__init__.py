"""Measurements, answers and page of a run with `--live`; they change no bit of its result."""
