"""Generate the page about a run from the run's log, or serve the page during training.

`--report` and `python -m nbllama.report LOG OUT.html` write the page to a file, and `--live` serves
it. `records` reads a log, `payload` turns the log into one object, `page` embeds the object in a
self-contained file, and `live` serves this file and its updates.
"""
