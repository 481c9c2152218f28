"""What the library asks of tensors and of the devices that they live on."""
