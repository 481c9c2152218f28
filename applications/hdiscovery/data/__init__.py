"""Images: datasets and photos."""
