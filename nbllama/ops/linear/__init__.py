"""A linear layer with its LoRA pair (`linear`), and the matrix products that it uses.

`matmul` multiplies many tokens by a quantised matrix, `tiles` contains its kernels, and `panels`
defines the layout of its second operand. `matvec` multiplies a few tokens, and `int8_rows`
quantises its input. `lora` and `lora_grad` compute the thin products of a LoRA pair.
"""
