"""Run numbered tasks: here, on Dask, as Slurm arrays. Know no sketches."""
