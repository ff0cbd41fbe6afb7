"""Attention: the forward pass (`attention`), its gradient (`grad`), the form for few queries
(`few`), and the pieces that they share (`tiles`).
"""
