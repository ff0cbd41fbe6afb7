"""Sample tokens with llama.cpp's samplers, in the same order and with the same random numbers.

`params` contains the settings, `filters` the stateless samplers, `penalties` and `mirostat` the
samplers that depend on earlier tokens, `random` the random number generator, and `chain` the
sampler that combines them. All formulas come from llama.cpp's src/llama-sampler.cpp, and the order
comes from common/sampling.cpp.
"""
