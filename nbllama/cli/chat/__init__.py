"""`nbllama chat`, `nbllama generate` and `python -m nbllama.main`: completions and chats."""
