"""The decoders as vector code: 16 (or 8 or 32) weights at a time, with the vectors from `_vec`.

File names, function names and results are the same as in the parent folder, which explains the
layouts; read its plain loops first. `NBLLAMA_KERNELS=plain` selects those loops.
"""
