"""`python -m rill.export`, the same as `rill export`."""

import sys

from rill.programs import run

sys.exit(run("export", sys.argv[1:]))
