"""The gallery: one page that shows the directions of a run."""

from hdiscovery.gallery.page import write_page
from hdiscovery.gallery.shown import ShownDirection, ShownRun

__all__ = ["ShownDirection", "ShownRun", "write_page"]
