"""The ops of a mixture of experts: choosing experts (`router`), and their activation (`gate`).

`rows` gathers the input rows of an expert's tokens, and adds the expert's outputs to the sums of
these tokens.
"""
