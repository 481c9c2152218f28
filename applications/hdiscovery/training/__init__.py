"""Training: Algorithm 1 of the paper and what a run needs around it."""
