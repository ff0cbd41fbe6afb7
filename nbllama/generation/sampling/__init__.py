"""The choice of the next token, with the samplers, the order and the random numbers of llama.cpp.

`params` holds the settings, `filters` what leaves candidates out, `penalties` and `mirostat` what
remembers earlier tokens, `random` the generator, `chain` the whole. Source of all formulas:
llama.cpp, src/llama-sampler.cpp, and common/sampling.cpp for the order.
"""
