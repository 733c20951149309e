"""General tools that know nothing of sketches: files, errors, ranges, memory, progress, streams."""
