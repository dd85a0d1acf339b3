"""What `python -m rill.bench` can be told."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from rill.bench.latency import Objective
from rill.bench.open import PERCENTS
from rill.bench.server import two_cores
from rill.bench.workload import MIXES

PARTS = ("floor", "load", "open", "profile")
MOST_STREAMS = 4096  # what a server runs at once unless told otherwise
MOST_SECONDS = 600.0  # of one load


@dataclass(frozen=True)
class Options:
    """The flags; `parts` are those to run, `cores` the server's and the client's if they are kept apart.

    `engines` are the server's processes; a profile is always of one.
    """

    parts: tuple[str, ...]
    bundle: Path
    streams: tuple[int, ...]
    seconds: float
    max_chars: int
    top_p: float
    objective: Objective
    mixes: tuple[str, ...]
    percents: tuple[float, ...]
    peers: bool
    target: str | None
    engines: int
    device: str
    round_milliseconds: float | None
    cores: tuple[int, int] | None
    json: Path | None
    plot: Path | None

    @property
    def server_flags(self) -> tuple[str, ...]:
        """Those of a server that is started here."""
        rounds = self.round_milliseconds
        return ("--device", self.device, *(() if rounds is None else ("--round-milliseconds", str(rounds))))


def options_of(arguments: list[str], about: str | None) -> Options:
    """Ends the program with a line that says why, if they make no sense."""
    parser = _parser(about)
    given = parser.parse_intermixed_args(arguments)

    def require(holds: bool, otherwise: str) -> None:
        if not holds:
            parser.error(otherwise)

    require(
        all(1 <= streams <= MOST_STREAMS for streams in given.streams), f"--streams must be from 1 to {MOST_STREAMS}"
    )
    require(
        0 < given.seconds <= MOST_SECONDS,
        f"--seconds must be more than 0 and at most {MOST_SECONDS:g}, not {given.seconds:g}",
    )
    require(given.max_chars >= 1, f"--max-chars must be at least 1, not {given.max_chars}")
    require(0 < given.top_p <= 1, f"--top-p must be more than 0 and at most 1, not {given.top_p:g}")
    require(not (given.peers and given.top_p < 1), "the peers of --peers have no top-p")
    require(all(0 < percent <= 1000 for percent in given.rates), "--rates must be more than 0 and at most 1000 percent")
    require(
        all(0 <= value < float("inf") for value in given.objective), "--objective must be two times in milliseconds"
    )
    require(
        not (given.target and (given.pin or given.round_milliseconds is not None)),
        "--pin and --round-milliseconds are for a server that is started here, not for --target",
    )
    require(not (given.target and given.part == "profile"), "profile needs a server that is started here, not --target")
    require(not given.peers or given.part in (None, "load"), "--peers goes with load, or with everything")
    require(given.engines >= 1, f"--engines must be at least 1, not {given.engines}")
    require(
        given.engines == 1 or not (given.target or given.pin or given.part in ("floor", "profile")),
        "--engines is for a server that is started here, without --pin or profile",
    )
    cores = None if given.target or given.pin is False or given.engines > 1 else two_cores()
    require(not (given.pin and cores is None), "--pin needs Linux and at least two cores")
    for flag, path in (("--json", given.json), ("--plot", given.plot)):
        require(path is None or path.parent.is_dir(), f"{flag} {path}: there is no folder {path and path.parent}")
    require(
        given.plot is None or given.plot.suffix.lower() in (".png", ".svg", ".pdf"),
        f"--plot {given.plot}: it must end in .png, .svg or .pdf",
    )
    return Options(
        parts=PARTS if given.part is None else (given.part,),
        bundle=given.bundle,
        streams=tuple(dict.fromkeys(given.streams)),
        seconds=given.seconds,
        max_chars=given.max_chars,
        top_p=given.top_p,
        objective=Objective(*given.objective),
        mixes=tuple(dict.fromkeys(given.mixes)),
        percents=tuple(dict.fromkeys(given.rates)),
        peers=given.peers,
        target=given.target,
        engines=given.engines,
        device=given.device,
        round_milliseconds=given.round_milliseconds,
        cores=cores,
        json=given.json,
        plot=given.plot,
    )


def _parser(about: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rill.bench", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("part", nargs="?", choices=PARTS, help="one part of the benchmark; without it, all of them")
    add("--bundle", required=True, type=Path, metavar="B", help="the bundle to measure")
    add("--json", type=Path, metavar="F", help="write everything that was found to this file")
    add("--plot", type=Path, metavar="F", help="draw it to this .png, .svg or .pdf file")
    add("--streams", type=int, nargs="+", default=[1, 8, 64, 256, 1000], metavar="N", help="how many at once"
        " (default: 1 8 64 256 1000)")  # fmt: skip
    add("--seconds", type=float, default=5.0, metavar="S", help="of each load, after a warm-up (default: %(default)s)")
    add("--max-chars", type=int, default=2000, metavar="N", help="characters of a text (default: %(default)s)")
    add("--top-p", type=float, default=1.0, metavar="P", help="of all texts, and of the floors (default: off)")
    default = Objective()
    add("--objective", type=float, nargs=2, default=[default.first_ms, default.character_ms],
        metavar=("FIRST", "THEN"), help="a text is on time if its first character comes within FIRST ms, and each"
        " next one THEN ms later at most (default: %(default)s)")  # fmt: skip
    add("--mixes", nargs="+", default=list(MIXES), choices=tuple(MIXES), help="of the open loop (default: all)")
    add("--rates", type=float, nargs="+", default=list(PERCENTS), metavar="P", help="of the open loop, in percent of"
        " the measured capacity (default: 25 50 75 90 110 200)")  # fmt: skip
    add("--peers", action="store_true", help="also measure plain servers, and MLServer if it is installed")
    add("--target", metavar="HOST:PORT", help="measure this running server; --bundle must be one that it serves")
    add("--device", default="auto", help="of the decode graph: auto, cpu, cuda or cuda:N (default: %(default)s)")
    add("--engines", type=int, default=1, metavar="N", help="processes of the server, which is loaded over several"
        " connections then (default: %(default)s)")  # fmt: skip
    add("--round-milliseconds", type=float, metavar="MS", help="of the server's engine rounds, at most")
    add("--pin", action=argparse.BooleanOptionalAction, help="keep the server on one core and the client on another"
        " (default: where there are two, and the server is started here)")  # fmt: skip
    return parser
