"""What a run took, step by step: noted while it runs, returned as a report."""
