"""Measure how well a model predicts a text and how much two models differ, and query llama.cpp."""
