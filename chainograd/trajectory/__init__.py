"""Chains whose states are all results: one node of autograd's graph for each step."""
