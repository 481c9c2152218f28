"""Layers whose weights need no gradient save only what the gradient of their input needs."""
