"""The state of a training run, in memory (`state`) and as one GGUF file (`file`).

`identity` contains the values that two runs must share; `legacy` reads files of the old `finetune`.
"""
