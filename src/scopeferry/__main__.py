"""``python -m scopeferry``."""

import sys

from scopeferry.cli import main

sys.exit(main())
