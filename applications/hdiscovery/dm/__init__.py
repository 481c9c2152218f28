"""The diffusion model: its networks, its files, and where h-space lies in it."""
