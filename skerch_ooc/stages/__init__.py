"""The stages of a run; in a folder of their own, as functions of the package have their names."""
