"""The ops of a mixture of experts: the choice of experts (`router`), their activation (`gate`).

`rows` gathers the input rows of an expert's tokens, and adds the expert's outputs to the tokens'
sums.
"""
