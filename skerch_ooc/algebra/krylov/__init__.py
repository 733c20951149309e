"""Block Krylov spaces in rounds: what follows from the sums that were measured over the rows."""
