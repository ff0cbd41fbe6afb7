"""The page of a run during training, served to browsers on this machine (`--live`)."""
