"""Blocks of a model: where they are, and calls of them."""
