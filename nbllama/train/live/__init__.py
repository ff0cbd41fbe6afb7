"""Measurements, answers and the web page for `--live`, none of which affects the run's result."""
