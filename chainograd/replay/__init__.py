"""What a step sees when it runs again, and what its result must equal."""
