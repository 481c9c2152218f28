"""What a step reaches besides its arguments: tensors, modules, generators."""
