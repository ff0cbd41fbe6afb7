"""Tables of each program's options, from which parser, help, docs and config files are generated.

Nothing here needs numpy or Numba.
"""
