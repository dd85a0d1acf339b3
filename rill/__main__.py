"""`python -m rill`."""

import sys

from rill.cli.main import main

sys.exit(main())
