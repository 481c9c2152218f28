"""What a step reaches besides its arguments."""
