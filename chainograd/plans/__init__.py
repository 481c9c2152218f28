"""Which states and graphs a chain keeps, and what that costs: decisions without tensors."""
