"""Choose the next token with llama.cpp's samplers, in its order and with its random numbers.

`params` contains the settings, `filters` the samplers without memory, `penalties` and `mirostat`
those that depend on earlier tokens, `random` the generator, and `chain` all of them together.
Source of all formulas: llama.cpp, src/llama-sampler.cpp, and common/sampling.cpp for the order.
"""
