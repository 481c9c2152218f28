"""`chain.check`: looks for what would make a gradient missing, wrong or surprising."""
