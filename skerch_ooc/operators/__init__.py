"""Anything with ``.shape`` and ``@``: adapted, built, probed. Knows no run."""
