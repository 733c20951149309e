"""Matrices in files: one module for each format, and what they have in common."""
