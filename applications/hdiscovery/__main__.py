"""``python -m hdiscovery``."""

import sys

from hdiscovery.cli import main

if __name__ == "__main__":
    sys.exit(main())
