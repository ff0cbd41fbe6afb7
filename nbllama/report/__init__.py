"""The page about a run, from its log or served during training.

`--report` and `python -m nbllama.report LOG OUT.html` write it as a file, `--live` serves it.
`records` reads a log, `payload` makes one object of it, `page` puts this into one self-contained
file, and `live` serves the same file and its updates.
"""
