"""Gated delta nets, a form of attention in which each head summarises the past in one matrix."""
