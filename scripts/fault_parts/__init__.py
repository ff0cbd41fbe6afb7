"""The faults of scripts/faults, one family per module; `box` runs the program and checks files."""
