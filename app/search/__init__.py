"""The nearest of what is enrolled."""
