"""The page about a run: from its log (`--report`, `python -m nbllama.report LOG OUT.html`), or
served while it goes on (`--live`).

`records` reads a log, `payload` makes one object of it, `page` puts that into one self-contained
file, and `live` serves the same file and what is new.
"""
