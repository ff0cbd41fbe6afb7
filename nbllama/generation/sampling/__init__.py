"""Choose the next token with llama.cpp's samplers, in the same order and with the same randomness.

`params` contains the settings, `filters` the stateless samplers, `penalties` and `mirostat` the
samplers that depend on earlier tokens, `random` the random number generator, and `chain` combines
all samplers. Source of all formulas: llama.cpp, src/llama-sampler.cpp; order: common/sampling.cpp.
"""
