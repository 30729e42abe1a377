"""Batches to a trained encoder."""
