"""Attention: `attention`, its gradient (`grad`), the form for few queries (`few`), `tiles`.

`tiles` holds the pieces that they share.
"""
