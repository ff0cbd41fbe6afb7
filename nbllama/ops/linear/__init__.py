"""A linear layer with its LoRA pair (`linear`), and the products that it consists of.

`matmul` is the product of many tokens with a quantised matrix, `tiles` contains its kernels, and
`panels` defines the layout of its second operand. `matvec` is the product of a few tokens, and
`int8_rows` its quantised input. `lora` and `lora_grad` are the thin products of a pair.
"""
