"""Labelled embeddings to error rates, thresholds and likelihood ratios: pure functions on arrays."""
