"""LoRA adapters.

`slots` lists the tensors that can have a pair, `pairs` defines adapters, and `mix` combines them.
"""
