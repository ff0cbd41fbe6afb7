"""Gated delta nets: attention whose past is one matrix for each head."""
