"""Shards, added and multiplied into sketches."""
