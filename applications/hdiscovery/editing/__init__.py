"""Editing of real images, and the directions that it needs in a file of their own."""
