"""Gated delta nets, a form of attention that summarises the past in one matrix per head."""
