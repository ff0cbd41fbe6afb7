"""Losses of preferences, from the log-probabilities of whole answers, one a page.

Each page has the formula, its derivative, a function in plain numpy, and the source. All of them
work in float64 on one number for each answer; nothing here knows of models.

A loss is a function of log pi(y|x), the sum of the log-probabilities of an answer's tokens, of the
same sum under the reference, and of the number of tokens. What it returns next to the loss is its
derivative with respect to log pi(y|x). Since that is a sum over tokens, the derivative with respect
to each token's log-probability is the same number, and that is the weight of the token in the
cross-entropy's gradient (with the other sign).
"""
