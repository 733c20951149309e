"""The files of a run: names, sealed HDF5 files, shards, sketches, results, and their verification.

It knows the plan, but no operator and no linear algebra.
"""
