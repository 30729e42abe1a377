"""Labelled embeddings to pairs, error rates, intervals, likelihood ratios and thresholds: pure functions on arrays."""
