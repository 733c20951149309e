"""What was asked, what it is frozen to, and all that follows: sizes, bytes, tasks."""
