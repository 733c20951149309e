"""Merge: column shards become row shards, Gram matrices and cross products of a sketch."""
