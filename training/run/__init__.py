"""Batches to a trained encoder: the experiment, its steps and epochs, losses, health, resumption."""
