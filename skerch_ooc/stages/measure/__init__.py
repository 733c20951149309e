"""Blocks of products, from the operator to sealed shards."""
