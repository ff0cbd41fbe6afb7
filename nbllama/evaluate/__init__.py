"""Measure how well a model predicts a text and how far two models differ; query llama.cpp."""
