"""The choice of the next token, with the samplers, the order and the random numbers of llama.cpp.

`params` contains the settings, `filters` the samplers without memory, `penalties` and `mirostat`
those that depend on earlier tokens, `random` the generator, and `chain` all of them together.
Source of all formulas: llama.cpp, src/llama-sampler.cpp, and common/sampling.cpp for the order.
"""
