"""A linear layer with its LoRA pair (`linear`), and the products that it is made of.

`matmul` is the product of many tokens with a quantised matrix, `tiles` its kernels, `panels` the
layout of its second operand; `matvec` is the product of a few tokens, `int8_rows` its rounded
input; `lora` and `lora_grad` are the thin products of a pair.
"""
