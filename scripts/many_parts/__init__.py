"""The tests of scripts/many.py: runs on many workers must have the bits of a run on one machine."""
