"""The processor cores that this process has, and how OpenMP's threads wait for work. Needs no PyTorch."""

import os
from pathlib import Path

SPINS = 5000  # about a quarter of a millisecond; threads that are about to be needed again rarely wait longer
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def let_threads_sleep() -> None:
    """Make OpenMP's threads sleep after a short wait for one another, unless the environment says how they wait.

    By default they spin for milliseconds. Where another program has the core that the awaited thread needs, each of
    the hundreds of waits in a step then lasts until that program's time is up. Threads that sleep at once
    (OMP_WAIT_POLICY=PASSIVE) make a step on a quiet machine 1.6 times as slow. OpenMP reads this once, as PyTorch is
    loaded.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


def available_cores() -> int:
    """The cores that this process may keep busy: those it may run on, or fewer by the quota of its cgroups."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    allowed = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(allowed, int(_quota())))


def _quota() -> float:
    """The smallest quota of this process's cgroups and the groups above them, in cores; at least a million if none."""
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return 1e6
    quotas = [1e6]
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        names = controllers.split(",")
        if controllers and "cpu" not in names:
            continue
        for root in [CGROUPS, CGROUPS / "unified"] if not controllers else [CGROUPS / controllers, CGROUPS / "cpu"]:
            group = root / path.lstrip("/")
            # In a container the path may be the host's, of which only the root can be seen.
            quotas += [_quota_of(folder) for folder in (group, *group.parents) if folder.is_relative_to(root)]
    return min(quotas)


def _quota_of(group: Path) -> float:
    """The quota of one cgroup, of version 1 or 2, in cores; infinite if it has none."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((group / name).read_text() for name in names).split()
            if quota not in ("max", "-1") and int(period) > 0:
                return int(quota) / int(period)
        except (OSError, ValueError):
            continue
    return float("inf")
