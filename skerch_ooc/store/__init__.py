"""Files of a run: names, completeness, integrity. Knows the plan; no operator, no arithmetic."""
