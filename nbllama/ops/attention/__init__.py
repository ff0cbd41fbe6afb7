"""Attention: `attention`, its gradient (`grad`), and a variant for few queries (`few`).

`tree` is attention with shared prompts, `sinks` adds attention sinks, and `tiles` contains the code
that they share.
"""
