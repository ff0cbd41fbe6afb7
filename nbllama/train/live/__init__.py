"""Measurements, answers and the page of a run with `--live`; none of them changes its result."""
