"""The networks that discovery trains: shift block, reconstructor, discriminator."""
