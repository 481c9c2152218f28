"""Measures of discovered directions."""
