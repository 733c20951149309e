"""Sketches, decomposed into values and vectors."""
