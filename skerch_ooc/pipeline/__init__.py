"""What a run is told to do and how far it is: plan, run, grow, status, verify, clean, submit."""
