"""Recover: merged sketches become eigenvalues or singular values, and their vectors."""
