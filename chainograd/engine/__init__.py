"""Carries a plan out: forward, backward, and the single step in between."""
