"""Tables of program options, from which the parser, help, docs and config files are derived.

This package requires neither numpy nor Numba.
"""
