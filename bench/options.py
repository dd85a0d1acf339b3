"""The options of `rill bench`. This module is quick to load."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from rill.addresses import split_addresses
from rill.bench.cores import two_cores
from rill.files import output_file

PARTS = ("floor", "load", "open", "profile")
MOST_STREAMS = 4096  # a server's default limit
MOST_SECONDS = 600.0  # of one load
PERCENTS = (25, 50, 75, 90, 110, 200)  # of the measured capacity


@dataclass(frozen=True)
class Objective:
    """Character i of a text is due `first_ms + i * character_ms` after its start: a reader of that pace never waits."""

    first_ms: float = 50.0
    character_ms: float = 5.0

    def seconds(self, character: int) -> float:
        """Return when the character of this index is due."""
        return 1e-3 * (self.first_ms + character * self.character_ms)

    def __str__(self) -> str:
        return f"first character within {self.first_ms:g} ms, then {self.character_ms:g} ms a character"


@dataclass(frozen=True)
class Mix:
    """Ranges of lengths; each doubling within a range is equally likely."""

    name: str
    prompt: tuple[int, int]
    generated: tuple[int, int]


MIXES = {
    mix.name: mix
    for mix in (
        Mix("mixed", (8, 256), (16, 1000)),
        Mix("prompt-heavy", (512, 512), (64, 64)),
        Mix("generate-heavy", (16, 16), (1000, 1000)),
    )
}


@dataclass(frozen=True)
class Options:
    """The flags; `parts` are those to run, `cores` the server's and the client's if they are pinned.

    `engines` is the number of the server's processes; a profile always has one.
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
        """The flags for a server that is started here."""
        rounds = self.round_milliseconds
        return ("--device", self.device, *(() if rounds is None else ("--round-milliseconds", str(rounds))))


def options_of(arguments: list[str], about: str | None) -> Options:
    """Parse and check the arguments. Exits with status 2 and one line if they are wrong."""
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
    require(not (given.peers and given.top_p < 1), "the servers of --peers have no top-p; leave out one of the two")
    require(all(0 < percent <= 1000 for percent in given.rates), "--rates must be more than 0 and at most 1000 percent")
    require(
        all(0 <= value < float("inf") for value in given.objective), "--objective must be two times in milliseconds"
    )
    require(
        not (given.target and (given.pin or given.round_milliseconds is not None)),
        "--pin and --round-milliseconds are for a server that is started here, not for --target",
    )
    require(not (given.target and given.part == "profile"), "profile needs a server that is started here, not --target")
    require(not given.peers or given.part in (None, "load"), "--peers goes with the part load, or with no part")
    require(given.engines >= 1, f"--engines must be at least 1, not {given.engines}")
    require(
        given.engines == 1 or not (given.target or given.pin or given.part in ("floor", "profile")),
        "--engines is for a server that is started here, without --pin or profile",
    )
    cores = None if given.target or given.pin is False or given.engines > 1 else two_cores()
    require(not (given.pin and cores is None), "--pin needs Linux and at least two cores")
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


def _address(typed: str) -> str:
    try:
        address, *more = split_addresses(typed)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if more or "://" in address:
        raise argparse.ArgumentTypeError(f"must be one HOST:PORT, without TLS, not {typed!r}")
    return address


def _parser(about: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rill bench", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("part", nargs="?", choices=PARTS, help="one part of the benchmark; without it, all of them")
    add("--bundle", required=True, type=Path, metavar="B", help="the bundle to measure")
    add("--json", type=output_file, metavar="F", help="write all results to this file")
    add("--plot", type=output_file, metavar="F", help="draw the results to this .png, .svg or .pdf file")
    add("--streams", type=int, nargs="+", default=[1, 8, 64, 256, 1000], metavar="N", help="streams at a time"
        " (default: 1 8 64 256 1000)")  # fmt: skip
    add("--seconds", type=float, default=5.0, metavar="S", help="duration of each load, after a warm-up"
        " (default: %(default)s)")  # fmt: skip
    add("--max-chars", type=int, default=2000, metavar="N", help="characters of a text (default: %(default)s)")
    add("--top-p", type=float, default=1.0, metavar="P", help="top-p of all texts, and of the floors (default: 1, off)")
    default = Objective()
    add("--objective", type=float, nargs=2, default=[default.first_ms, default.character_ms],
        metavar=("FIRST", "THEN"), help="a text is on time if its first character arrives within FIRST ms, and each"
        " next one at most THEN ms later (default: 50 5)")  # fmt: skip
    add("--mixes", nargs="+", default=list(MIXES), choices=tuple(MIXES), help="mixes of the open loop (default: all)")
    add("--rates", type=float, nargs="+", default=list(PERCENTS), metavar="P", help="rates of the open loop, in percent"
        " of the measured capacity (default: 25 50 75 90 110 200)")  # fmt: skip
    add("--peers", action="store_true", help="also measure plain servers, and MLServer if it is installed")
    add(
        "--target",
        type=_address,
        metavar="HOST:PORT",
        help="measure this running server; --bundle must be one that it serves",
    )
    add("--device", default="auto", help="of the decode graph: auto, cpu, cuda or cuda:N (default: %(default)s)")
    add("--engines", type=int, default=1, metavar="N", help="processes of the server; the load of several has"
        " several connections (default: %(default)s)")  # fmt: skip
    add("--round-milliseconds", type=float, metavar="MS", help="limit of the server's engine rounds")
    add("--pin", action=argparse.BooleanOptionalAction, help="pin the server to one core and the client to another"
        " (default: if there are two and the server is started here)")  # fmt: skip
    return parser
