"""The losses of the objectives, one per module, computed from the log-probabilities of answers.

Each module contains a formula, its derivative, an implementation in plain numpy, and a reference to
the source. All functions work in float64, and none of them depends on a model. `grpo` computes a
loss for each token; the other losses are computed for whole answers.

The loss of an answer can depend on log pi(y|x), which is the sum of the log-probabilities of its
tokens, on the same sum under the reference model, and on the number of tokens. Each function also
returns the derivative with respect to log pi(y|x). Since log pi(y|x) is a sum over tokens, the
derivative with respect to each token's log-probability is the same number. The gradient of the loss
is therefore that of the cross-entropy, with each token weighted by the negative of this number.
"""
