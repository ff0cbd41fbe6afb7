"""A linear layer with its LoRA pair (`linear`), and the matrix products that it uses.

`matmul` multiplies many tokens by a quantised matrix; its kernels are in `tiles`, and `panels`
defines the layout of its second operand. `matvec` does the same for a few tokens. `int8_rows`
quantises inputs for the integer products used in generation. `lora` and `lora_grad` compute the
thin products of a LoRA pair.
"""
