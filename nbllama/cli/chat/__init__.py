"""`nbllama chat`, `nbllama generate` and `python -m nbllama.main`: completion and conversation."""
