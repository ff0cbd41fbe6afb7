"""Measurements, answers and the web page for `--live`; none of these affect the result of a run."""
