"""Attacks: faults, damage, bad input and load, searched for systematically.

By default a sample of each runs; ``-m "soak or not soak"`` runs all of it. Which faults were tried
and what became of them is counted (:mod:`faults.tally`).
"""
