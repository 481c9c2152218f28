"""Variants of a recipe, trained and measured alike."""
