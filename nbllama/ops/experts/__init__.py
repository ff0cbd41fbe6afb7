"""The ops of a mixture-of-experts (MoE) layer.

`router` chooses the experts for each token, and `gate` computes the activation of an expert. `rows`
gathers the input rows for an expert and adds the expert's output rows to the layer's output.
"""
