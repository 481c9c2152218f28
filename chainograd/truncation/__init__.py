"""Which steps the gradient passes, and what changes it on its way back."""
