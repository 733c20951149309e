"""The stages of a run. (Not modules of the package itself, whose functions have these names.)"""
