"""The state of a training run, in memory (`state`) and as one GGUF file (`file`).

`identity` is what two runs must have in common; `legacy` reads files of the old `finetune`.
"""
