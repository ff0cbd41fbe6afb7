"""The decoders again, sixteen (or 8, or 32) weights at a time, with the vectors of `_vec`.

Same file names, function names and results as one folder up, where layouts are explained; the plain
loops there are the text to read first. `NBLLAMA_KERNELS=plain` runs those instead of these.
"""
