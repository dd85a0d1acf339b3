"""`python -m rill.bench`, the same as `rill bench`."""

import sys

from rill.programs import run

sys.exit(run("bench", sys.argv[1:]))
