"""One folder for each step of the data; a task is plain data and a function found by name."""
