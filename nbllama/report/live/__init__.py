"""The page of a run that is going on, served to browsers on this machine (`--live`)."""
