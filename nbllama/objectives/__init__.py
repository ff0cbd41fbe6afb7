"""Preference losses, one per module, computed from the log-probabilities of whole answers.

Each module contains a formula, its derivative, the implementation in plain numpy, and the source.
All functions work in float64 with one number per answer, and none of them depends on a model.

A loss depends on log pi(y|x), which is the sum of the log-probabilities of an answer's tokens, on
the same sum under the reference model, and on the number of tokens. Each function also returns the
derivative with respect to log pi(y|x). Since log pi(y|x) is a sum over tokens, the derivative with
respect to each token's log-probability is the same number. With the opposite sign, this number is
the weight of the token in the gradient of the cross-entropy.
"""
