"""The page about a run, generated from its log or served during training.

`--report` and `python -m nbllama.report LOG OUT.html` write it as a file, `--live` serves it.
`records` reads a log, `payload` turns it into one object, `page` embeds the object in a
self-contained file, and `live` serves that file and its updates.
"""
