"""`python -m rill.train`, the same as `rill train`."""

import sys

from rill.programs import run

sys.exit(run("train", sys.argv[1:]))
