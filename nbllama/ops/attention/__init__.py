"""Attention: the forward pass (`attention`), its gradient (`grad`), and variants.

`few` is a variant for a few queries, `tree` implements attention with shared prompts, `sinks` adds
attention sinks, and `tiles` contains the code that these modules share.
"""
