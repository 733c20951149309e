"""Operators: what is asked of one, adapters, loading by factory, the probe, ready-made ones."""
