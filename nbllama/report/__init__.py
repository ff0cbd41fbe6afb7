"""The page about a run, made from its log: `--report`, and `python -m nbllama.report LOG OUT.html`.

One self-contained file without a script: curves are drawn here as SVG, colours follow the reader's
light or dark theme, and every text of the run is escaped.
"""
