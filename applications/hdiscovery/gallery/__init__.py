"""The page that shows what was found."""

from hdiscovery.gallery.page import DirectionStrips, write_page

__all__ = ["DirectionStrips", "write_page"]
