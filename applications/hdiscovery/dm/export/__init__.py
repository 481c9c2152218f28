"""ADM's UNet in the format of diffusers."""
