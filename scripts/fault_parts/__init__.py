"""The faults of scripts/faults, a family a module; `box` runs the program and checks files."""
