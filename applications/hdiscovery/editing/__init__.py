"""Editing of real images along directions, and what editing needs: inversion, sheets, means."""
