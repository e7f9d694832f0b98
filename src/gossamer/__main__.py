"""`python -m gossamer` is `gossamer`."""

import sys

from .cli import main

sys.exit(main())
