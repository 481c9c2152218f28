"""`chain.check`: a few observed steps of a chain, and what they show."""
