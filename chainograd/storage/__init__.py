"""Where nodes live: on the device, in pinned host memory, or on disk."""
