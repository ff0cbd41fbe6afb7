"""What a program can be asked: tables of options that make parser, help, docs and config files.

Nothing here needs numpy or Numba.
"""
