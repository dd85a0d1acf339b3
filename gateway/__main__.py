"""`python -m rill.gateway`, the same as `rill http`."""

from rill.first_signals import take_signals

take_signals()  # before anything else is imported

import sys  # noqa: E402

from rill.programs import run  # noqa: E402

sys.exit(run("http", sys.argv[1:]))
