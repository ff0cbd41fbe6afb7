"""The programs `nbllama chat`, `nbllama generate` and `python -m nbllama.main`."""
