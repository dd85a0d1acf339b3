"""`python -m rill.serve`, the same as `rill serve`."""

from rill.first_signals import take_signals

take_signals()  # before anything else is imported

import sys  # noqa: E402

from rill.programs import run  # noqa: E402

sys.exit(run("serve", sys.argv[1:]))
