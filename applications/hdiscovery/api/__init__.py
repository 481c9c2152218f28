"""What ``import hdiscovery`` offers; the commands call the same functions and print the results."""
