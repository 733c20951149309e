"""Measure: blocks of products, from the operator to column shards."""
