"""Measurements: commands that print figures from one run. None of them is a test."""
