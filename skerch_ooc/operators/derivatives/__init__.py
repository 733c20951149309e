"""Derivatives of losses twice: what a loss, its parameters and its batches are, and products."""
