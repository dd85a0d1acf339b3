"""The results of a run of the benchmark; parts that were not run are empty."""

from dataclasses import dataclass, field

from rill.bench.closed import Load
from rill.bench.floors import Floor
from rill.bench.idle import Wait
from rill.bench.open import Open
from rill.bench.profile import Profile
from rill.bench.server import Server


@dataclass(frozen=True)
class Peer:
    """One of `rill.bench.peers` under one load."""

    name: str
    what: str
    load: Load


@dataclass
class Results:
    """All results; `notes` are sentences about what could not be measured."""

    pinned: tuple[int, int] | None = None  # the server's core and the client's
    server: Server | None = None
    peak_megabytes: float | None = None
    floors: list[Floor] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    idle: Wait | None = None
    newcomer: Wait | None = None
    open: list[Open] = field(default_factory=list)
    peers: list[Peer] = field(default_factory=list)
    profile: list[Profile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
