"""`python -m rill.serve`, the same as `rill serve`."""

import sys

from rill.programs import run

sys.exit(run("serve", sys.argv[1:]))
