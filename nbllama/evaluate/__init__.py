"""How well a model predicts a text, how far two models are apart, and whether llama.cpp agrees."""
