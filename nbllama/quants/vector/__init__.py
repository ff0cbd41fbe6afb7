"""Vectorised decoders, which decode 4 to 32 weights at a time with `nbllama.quants._vec`.

File names, function names and results are the same as in the parent folder, which documents the
layouts and contains plain loops that are easier to read. `NBLLAMA_KERNELS=plain` selects those
loops.
"""
