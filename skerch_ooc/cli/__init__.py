"""What people type and read on a terminal; no rule of the pipeline is made here."""
