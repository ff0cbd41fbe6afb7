"""Gated delta nets: a form of attention that stores the past as one matrix per head."""
