"""Slurm: job arrays that do the tasks of a run, and what is known of them afterwards."""
