"""nbllama: LoRA training on quantised GGUF models, on CPUs, in kernels that people can read."""

__version__ = "0.1.0"
