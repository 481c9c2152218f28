"""Tensors of every kind, and the devices that they are on."""
