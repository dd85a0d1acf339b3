"""make fuzz: a million inputs and more to everything that reads what others wrote, and a server among hostile clients.

    python tests/fuzz.py                    all targets
    python tests/fuzz.py TARGET             one of them
    python tests/fuzz.py TARGET HEX         one input

RILL_FUZZ_INPUTS is how many inputs there are in all, RILL_FUZZ_SEED repeats a run.
"""

import math
import os
import resource
import secrets
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from random import Random

sys.path[:0] = [str(Path(__file__).parent.parent / "support"), str(Path(__file__).parent.parent.parent)]

from fuzz_live import ARGUMENTS, fuzz_server
from fuzz_targets import TARGETS
from random_models import make_run, save_bundle
from servers import run_server

SECONDS = 10  # of the processor, that an input may take
MORE_MEGABYTES = 256  # of memory that all inputs together may leave behind
LIVE, LIVE_SHARE = "server", 0.01  # of all inputs are calls


class HungError(Exception):
    """An input takes too long."""


def _hung(*_: object) -> None:
    raise HungError(f"an input takes the processor for more than {SECONDS} s")


def fuzz_target(name: str, inputs: int, seed: str) -> Counter[str]:
    """Try so many inputs. Raises SystemExit, and says how to repeat it, for the first that is not answered."""
    target, answers, random = TARGETS[name], Counter[str](), Random(f"{seed} {name}")
    for _ in range(inputs):
        data = target.make(random)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            answers[target.attempt(data)] += 1
        except Exception:
            traceback.print_exc()
            sys.exit(
                f"{name}: the fault above can be repeated with\n  {sys.executable} tests/fuzz.py {name} {data.hex()}"
            )
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    return answers


def fuzz_live(calls: int, seed: str) -> Counter[str]:
    """The same with a server of its own. Raises AssertionError."""
    with tempfile.TemporaryDirectory() as folder:
        save_bundle(make_run(), Path(folder) / "tiny")
        with run_server(Path(folder) / "tiny", *ARGUMENTS) as server:
            return fuzz_server(server, calls, Random(f"{seed} {LIVE}"))


def main(arguments: list[str]) -> None:
    """Fuzz as the arguments and the environment say."""
    warnings.simplefilter("error")
    signal.signal(signal.SIGPROF, _hung)
    if len(arguments) == 2:
        print(TARGETS[arguments[0]].attempt(bytes.fromhex(arguments[1])))
        return
    inputs = int(os.environ.get("RILL_FUZZ_INPUTS", "1000000"))
    seed = os.environ.get("RILL_FUZZ_SEED") or str(secrets.randbits(32))
    names = arguments or [*TARGETS, LIVE]
    shares = {name: LIVE_SHARE if name == LIVE else TARGETS[name].share for name in names}
    shares = {name: share / sum(shares.values()) for name, share in shares.items()}
    print(f"RILL_FUZZ_SEED={seed} RILL_FUZZ_INPUTS={inputs}", flush=True)
    began, total = time.monotonic(), 0
    for name, share in shares.items():
        started, count = time.monotonic(), math.ceil(inputs * share)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answers = fuzz_live(count, seed) if name == LIVE else fuzz_target(name, count, seed)
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        if more > MORE_MEGABYTES:
            sys.exit(f"{name}: {count:,} inputs took {more:,} MB of memory")
        seen = ", ".join(f"{answer} {times:,}" for answer, times in answers.most_common())
        print(f"{name:10} {count:>9,} inputs {time.monotonic() - started:7.1f} s   {seen}", flush=True)
        total += count
    print(f"{'all':10} {total:>9,} inputs {time.monotonic() - began:7.1f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
