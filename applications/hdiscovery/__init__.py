"""Unsupervised discovery of interpretable directions in h-space, on top of chainograd."""
