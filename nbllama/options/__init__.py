"""Tables of each program's options; the parser, help, docs and config files are based on them.

Nothing here needs numpy or Numba.
"""
