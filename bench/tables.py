"""The results of a run as tables for the screen."""

from collections.abc import Callable, Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from rill.bench.closed import Load
from rill.bench.floors import NAMES, Floor
from rill.bench.idle import Wait
from rill.bench.latency import Percentiles
from rill.bench.load_generator import BUSY, LATE_MS
from rill.bench.open import Open
from rill.bench.options import Objective
from rill.bench.profile import ENGINE, Profile
from rill.bench.results import Peer, Results
from rill.bench.server import Server

Format = Callable[[float], str]
whole, tenths, hundredths, percent = "{:,.0f}".format, "{:,.1f}".format, "{:,.2f}".format, "{:.0%}".format


def tables(results: Results, objective: Objective) -> Iterator[Table]:
    """Yield a table for each part that was run."""
    if results.floors:
        yield closed_table(results, objective)
    if waits := [wait for wait in (results.idle, results.newcomer) if wait]:
        yield waits_table(waits)
    for mix in dict.fromkeys(rate.mix for rate in results.open):
        yield open_table([rate for rate in results.open if rate.mix == mix], objective)
    if results.peers:
        yield peers_table(results.peers, results.loads)
    if results.profile:
        yield profile_table(results.profile)


def closed_table(results: Results, objective: Objective) -> Table:
    """Make a column for each number of streams: the floors and, if it was run, the closed loop."""
    batches = list(dict.fromkeys(floor.batch for floor in results.floors))
    table = _table("streams, or rows of a batch", [f"{batch:,}" for batch in batches], _about(results))
    _heading(table, "in process, median")
    for name, label in NAMES.items():
        floors = [_floor(results.floors, name, batch) for batch in batches]
        _row(table, f"{label}, characters/s", [floor.speed for floor in floors], whole)
        if name == "decode":
            _row(table, "... its CPU, µs a character", [floor.cpu_us for floor in floors], tenths)
    if loads := results.loads:
        _heading(table, "over gRPC")
        _row(table, "characters/s", [load.characters_per_second for load in loads], whole)
        for name, label in NAMES.items():
            _row(table, f"÷ {label}", [load.ratios[f"ratio_to_{name}"] for load in loads], hundredths)
        _row(table, "messages/s", [load.messages_per_second for load in loads], whole)
        _row(table, "characters a message", [load.characters_per_message for load in loads], tenths)
        _latencies(table, loads)
        _row(table, "texts on time *", [load.on_time_texts for load in loads], percent)
        _row(table, "characters/s on time *", [load.on_time_characters_per_second for load in loads], whole)
        _row(table, "slowest stream ÷ mean", [load.slowest_to_mean for load in loads], hundredths)
        _row(table, "server CPU, µs a character", [load.server_cpu_us_per_character for load in loads], tenths)
        _row(table, "... ÷ decode graph's", [load.ratios.get("cpu_ratio_to_decode") for load in loads], hundredths)
        _row(table, "server memory, MB", [load.server_megabytes for load in loads], whole)
        _row(table, "... beyond rest, KB a stream", [load.kilobytes_per_stream for load in loads], whole)
        _client(table, loads)
        _row(table, "cores busy with other programs", [load.other_cores for load in loads], tenths)
        table.caption = f"* {objective}\n{table.caption}{_busy(loads)}"
    return table


def waits_table(waits: Sequence[Wait]) -> Table:
    """Make a column for each load: first characters beside ping-pongs."""
    streams = [f"{wait.streams}" for wait in waits]
    table = _table("streams that are busy at the same time", streams, "of texts one at a time")
    _percentiles(table, "ping-pong, ms", [wait.ping_ms for wait in waits], ("p50", "p99"), hundredths)
    every = ("p50", "p90", "p99", "max")
    _percentiles(table, "first character, ms", [wait.first_character_ms for wait in waits], every, hundredths)
    _row(table, "first character ÷ ping-pong, p50", [wait.ratio for wait in waits], hundredths)
    return table


def open_table(rates: Sequence[Open], objective: Objective) -> Table:
    """Make a column for each rate of one mix."""
    caption = f"* {objective}; the capacity is {rates[0].capacity_texts_per_second:,.1f} texts/s{_busy(rates)}"
    table = _table(f"{rates[0].mix} texts at random times, % of capacity", [f"{r.percent:g}" for r in rates], caption)
    _row(table, "texts/s offered", [rate.offered_texts_per_second for rate in rates], tenths)
    _row(table, "texts/s achieved", [rate.achieved_texts_per_second for rate in rates], tenths)
    _row(table, "characters/s", [rate.characters_per_second for rate in rates], whole)
    _row(table, "messages/s", [rate.messages_per_second for rate in rates], whole)
    _latencies(table, rates)
    _row(table, "texts on time *", [rate.on_time_texts for rate in rates], percent)
    _row(table, "characters/s on time *", [rate.on_time_characters_per_second for rate in rates], whole)
    lost = [rate.dropped + rate.refused for rate in rates]
    _row(table, "dropped or refused, of offered", _shares(lost, rates), percent)
    if any(rate.refused for rate in rates):
        _percentiles(table, "refused after, ms", [rate.refused_ms for rate in rates], ("p50", "p99"), tenths)
    _row(table, "unfinished, of offered", _shares([rate.unfinished for rate in rates], rates), percent)
    _client(table, rates)
    return table


def peers_table(peers: Sequence[Peer], loads: Sequence[Load]) -> Table:
    """Make a column for each peer and number of streams."""
    headers = [f"{peer.name}, {peer.load.streams}" for peer in peers]
    table = _table(
        "peers, one character a message; streams", headers, f"{_what(peers)}{_busy([peer.load for peer in peers])}"
    )
    ours = {load.streams: load.characters_per_second for load in loads}
    speeds = [peer.load.characters_per_second for peer in peers]
    _row(table, "characters/s", speeds, whole)
    _row(table, "÷ decode graph", [peer.load.ratios["ratio_to_decode"] for peer in peers], hundredths)
    if any(peer.load.streams in ours for peer in peers):
        times = [
            ours[peer.load.streams] / speed if peer.load.streams in ours else None
            for peer, speed in zip(peers, speeds, strict=True)
        ]
        _row(table, "Rill ÷ this, characters/s", times, tenths)
    _latencies(table, [peer.load for peer in peers])
    _row(table, "server CPU, µs a character", [peer.load.server_cpu_us_per_character for peer in peers], tenths)
    _client(table, [peer.load for peer in peers])
    return table


def profile_table(profiles: Sequence[Profile]) -> Table:
    """Make a row for each stage: µs a round and µs a character."""
    headers = [f"{unit}, {profile.streams}" for profile in profiles for unit in ("a round", "a character")]
    table = _table("where the server's time goes, µs; streams", headers, _rounds(profiles))
    _heading(table, "engine thread")
    for stage in profiles[0].seconds:
        if stage == "decode":
            _heading(table, "event loop")
        cells = (value for p in profiles for value in (p.us_per_round[stage], p.us_per_character[stage]))
        _row(table, stage.replace("_", " "), list(cells), hundredths)
    return table


def _rounds(profiles: Sequence[Profile]) -> str:
    lines = []
    for profile in profiles:
        engine = sum(profile.seconds[stage] for stage in ENGINE) / profile.elapsed_seconds
        lines.append(
            f"{profile.streams} streams: {profile.rounds:,} rounds of {profile.steps / profile.rounds:.1f} steps and "
            f"{profile.characters / profile.rounds:.1f} characters; {profile.characters / profile.messages:.1f} "
            f"characters a message; the engine's stages are {engine:.0%} of the time"
        )
    return "\n".join(lines)


def _latencies(table: Table, rows: Sequence[Load | Open]) -> None:
    for name, label, which, form in (
        ("first_character_ms", "first character, ms", ("p50", "p90", "p99", "max"), tenths),
        ("inter_character_us", "inter-character, µs", ("p50", "p90", "p99", "max"), whole),
        ("queued_ms", "queue, ms", ("p50", "p99"), tenths),
    ):
        _percentiles(table, label, [getattr(row, name) for row in rows], which, form)


def _client(table: Table, rows: Sequence[Load | Open]) -> None:
    _row(table, "client CPU, of a core", [row.client_cpu_share for row in rows], percent)
    _row(table, "client lag p99, ms", [row.client_lag_ms.p99 for row in rows], tenths)


def _busy(rows: Sequence[Load | Open]) -> str:
    """Warn where the client may be the limit."""
    warning = ""
    if any(row.client_cpu_share >= BUSY for row in rows):
        warning += "\nwhere the client's CPU is near 100 %, the client, not the server, may be the limit"
    if any((row.client_lag_ms.p99 or 0) >= LATE_MS for row in rows):
        warning += "\nwhere the client's lag is large, latencies are partly its own: other programs delayed it"
        warning += "\n(on Linux, a session of its own may help: setsid -w rill bench ...)"
    return warning


def _about(results: Results) -> str:
    server = results.server
    cores = f"; server on core {results.pinned[0]}, client on core {results.pinned[1]}" if results.pinned else ""
    return f"{_started(server)}{cores}" if server else "no server was needed"


def _started(server: Server) -> str:
    if server.start_seconds is None or server.rest_megabytes is None:
        return f"server at {server.target}; the floors are this machine's"
    return f"server listening after {server.start_seconds:.2f} s, with {server.rest_megabytes:.0f} MB"


def _what(peers: Sequence[Peer]) -> str:
    return "; ".join(dict.fromkeys(f"{peer.name}: {peer.what}" for peer in peers))


def _shares(counts: Sequence[int], rates: Sequence[Open]) -> list[float]:
    return [count / max(rate.offered, 1) for count, rate in zip(counts, rates, strict=True)]


def _floor(floors: Sequence[Floor], name: str, batch: int) -> Floor:
    return next(floor for floor in floors if (floor.name, floor.batch) == (name, batch))


def _percentiles(table: Table, label: str, values: Sequence[Percentiles], which: Sequence[str], form: Format) -> None:
    """Add a row for each, the first of them with the label."""
    for name in which:
        _row(table, f"{label}  {name}", [getattr(value, name) for value in values], form)
        label = "..."


def _table(title: str, headers: Sequence[str], caption: str) -> Table:
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, title_justify="left", caption_justify="left")
    table.add_column("", no_wrap=True)
    for header in headers:
        table.add_column(header, justify="right")
    return table


def _heading(table: Table, text: str) -> None:
    table.add_section()
    table.add_row(f"[bold]{text}")


def _row(table: Table, label: str, values: Sequence[float | None], form: Format) -> None:
    table.add_row(label, *("-" if value is None else form(value) for value in values))
