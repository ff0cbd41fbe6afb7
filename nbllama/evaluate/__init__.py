"""Measure how well a model predicts a text, how far two models differ, and compare llama.cpp."""
