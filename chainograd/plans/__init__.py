"""Decisions without tensors: which states and graphs are kept, and what that costs."""
