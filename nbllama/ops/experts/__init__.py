"""The ops of a mixture of experts: which experts a token takes (`router`), what they do (`gate`).

`rows` brings the tokens of one expert together, and adds what it gives to theirs.
"""
