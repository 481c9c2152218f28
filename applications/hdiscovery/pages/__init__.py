"""The gallery: one page that shows the directions of a run."""

from hdiscovery.pages.page import write_page
from hdiscovery.pages.shown import ShownDirection, ShownRun

__all__ = ["ShownDirection", "ShownRun", "write_page"]
