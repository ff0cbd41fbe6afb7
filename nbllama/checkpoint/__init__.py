"""The state of a training run, in memory (`state`) and as one GGUF file (`file`).

`identity` defines the values that must match for one run to resume another, and `legacy` reads
files written by the old `finetune`.
"""
