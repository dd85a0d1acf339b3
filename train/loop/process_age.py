"""How long ago this process was started."""

import os
import time
from pathlib import Path

STAT = Path("/proc/self/stat")
LONGEST_START = 30.0  # seconds; an older process was something else before, such as a script that ends with `exec`


def process_age() -> float:
    """The seconds since this process was started; 0 where the system does not say, or it is older than a start takes.

    Loading Python and the first modules is part of what a user waits for.
    """
    try:
        fields = STAT.read_text().rpartition(")")[2].split()  # a program's name may have spaces
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, ValueError, IndexError, AttributeError):  # not Linux
        return 0.0
    return age if 0 <= age <= LONGEST_START else 0.0
