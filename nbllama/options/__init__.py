"""Tables of program options, used to generate the parser, help, docs and config files.

This package imports neither numpy nor Numba.
"""
