"""Evaluation: how good the challenger is, and the champion on the same rows. NumPy only."""
