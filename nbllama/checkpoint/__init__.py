"""The state of a training run, in memory (`state`) and as one GGUF file (`file`).

`identity` defines the values that two runs must share, and `legacy` reads files written by the old
`finetune`.
"""
