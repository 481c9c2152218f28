"""Where kept states live: on the device, on the host, on disk."""
