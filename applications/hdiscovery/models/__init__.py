"""The networks: the diffusion model and what is trained around it."""
