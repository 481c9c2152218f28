"""Which steps the gradient passes, and how it passes through them."""
