"""`nbllama chat` (`python -m nbllama.main`): text completion and conversations."""
