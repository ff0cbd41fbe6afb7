"""Training: one step (`trainer`), what surrounds it, and a whole run from options to files
(`run`).
"""
