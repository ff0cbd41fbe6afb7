"""Measurements, answers and the web page for `--live`. They do not affect the run's result."""
