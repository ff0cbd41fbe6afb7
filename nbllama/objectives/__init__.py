"""Preference losses, one per page, computed from the log-probabilities of whole answers.

Each page contains the formula, its derivative, a function in plain numpy, and the source. All
functions use float64 and one number per answer; nothing here depends on a model.

A loss is a function of log pi(y|x), the sum of the log-probabilities of an answer's tokens, of the
same sum under the reference model, and of the number of tokens. It also returns its derivative with
respect to log pi(y|x). Since log pi(y|x) is a sum over tokens, the derivative with respect to each
token's log-probability is the same number. With the opposite sign, this number is the token's
weight in the cross-entropy's gradient.
"""
