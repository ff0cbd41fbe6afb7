"""Attention: `attention`, its gradient (`grad`), and a variant for few queries (`few`).

`tree` implements attention with shared prompts, `sinks` adds attention sinks, and `tiles` contains
the code shared by these modules.
"""
