"""Random constraints to a real server: statuses only, texts that match, and no long turn of the event loop.

More of them: `python tests/fuzz/fuzz_constraints.py 10000`.
"""

from random import Random

import pytest
from fuzz_constraints import SYMBOLS, fuzz_constraints, milliseconds, timed_server
from random_models import make_run, save_bundle

LONGEST = 100  # milliseconds of the processor, generous: a dozen have been seen


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("calls", [40, pytest.param(1_000, marks=pytest.mark.long)])
def test_random_constraints_get_statuses_and_hold_up_nobody(tmp_path, calls):
    save_bundle(make_run(SYMBOLS), tmp_path / "tiny")
    with timed_server(tmp_path / "tiny", tmp_path / "turns") as server:
        answers = fuzz_constraints(server, calls, Random(1))
        status, log = server.stop()
    assert answers.statuses.keys() >= {"OK", "INVALID_ARGUMENT"}
    assert (status, "Traceback" in log) == (0, False), log[-2000:]
    assert milliseconds(tmp_path / "turns") < LONGEST
