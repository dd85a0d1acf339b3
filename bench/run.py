"""The benchmark: its parts one after the other, and what is made of their results."""

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from rill.bench import BenchError
from rill.bench.closed import WINDOWS, measure, window
from rill.bench.cores import on_core
from rill.bench.floors import Floors, sample
from rill.bench.idle import idle_wait, newcomer_wait
from rill.bench.open import CAPACITY_STREAMS, open_loop
from rill.bench.options import MIXES, Mix, Options
from rill.bench.peers import MLSERVER, installed_peers, stub_of
from rill.bench.peers import STREAMS as PEER_STREAMS
from rill.bench.profile import FLAG, Profile, read_profile
from rill.bench.profile import STREAMS as PROFILE_STREAMS
from rill.bench.report_json import document
from rill.bench.results import Peer, Results
from rill.bench.server import CONNECTIONS, Server, end_on_signals, own_server, rill, served_name
from rill.bench.tables import tables
from rill.bench.workload import Workload, plain
from rill.bundle import Bundle, BundleError, read_bundle
from rill.cli.local_server import StartError as ServerStartError
from rill.cli.progress import ProgressBar
from rill.files import printed_beside, replaced
from rill.processes import python_command
from rill.serve.errors import StartError
from rill.train.errors import ConfigError

NEWCOMER_STREAMS = 64  # that are busy when a newcomer arrives


def benchmark(options: Options, command: Sequence[str]) -> int:
    """Run the parts, print tables, write files. Returns the exit status: 2 for an error."""
    try:
        bundle = read_bundle(options.bundle)
        results = asyncio.run(run(options, bundle))
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
        with printed_beside(options.json):
            for table in tables(results, options.objective):
                console.print(table)
            for note in results.notes:
                console.print(note)
        written = document(command, options, bundle, results)
        if options.json:
            with replaced(options.json) as file:
                file.write((json.dumps(written, ensure_ascii=False, indent=1) + "\n").encode())
        if options.plot:
            from rill.bench.plot import draw  # noqa: PLC0415  # loading matplotlib takes longer than a short benchmark

            with replaced(options.plot) as file:
                draw(written, file, options.plot.suffix[1:].lower())
    except (BenchError, BundleError, ServerStartError, StartError, ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


async def run(options: Options, bundle: Bundle) -> Results:
    """Run the parts that the options name. Raises BenchError, StartError or ConfigError."""
    end_on_signals()
    results = Results(pinned=options.cores)
    with on_core(options.cores[1] if options.cores else None), ProgressBar(_measurements(options)) as bar:
        parts = Parts(options, bundle, results, bar)
        if options.parts == ("floor",):
            await parts.floor()
        if "load" in options.parts or "open" in options.parts:
            async with parts.server() as server:
                results.server = server
                parts.model = await served_name(server.target, bundle.model_id)
                if "load" in options.parts:
                    await parts.load(server)
                    await parts.waits(server)
                if "open" in options.parts:
                    await parts.open(server)
                results.peak_megabytes = server.peak_megabytes()
        if options.peers:
            await parts.peers()
        if "profile" in options.parts:
            await parts.profile()
    return results


def _measurements(options: Options) -> int:
    """Count how often the bar will advance."""
    loads = len(options.streams) * WINDOWS
    return (
        (loads if options.parts == ("floor",) else 0)
        + ((loads + 2) if "load" in options.parts else 0)
        + (len(options.mixes) * (1 + len(options.percents)) if "open" in options.parts else 0)
        + (len(installed_peers()) * len(PEER_STREAMS) * WINDOWS if options.peers else 0)
        + (len(PROFILE_STREAMS) if "profile" in options.parts else 0)
    )


class Parts:
    """The parts; each adds to `results`."""

    def __init__(self, options: Options, bundle: Bundle, results: Results, bar: ProgressBar) -> None:
        self._options, self._bundle, self._found, self._bar = options, bundle, results, bar
        self._core = options.cores[0] if options.cores else None
        self.model = bundle.name  # its name on the server

    @asynccontextmanager
    async def server(self) -> AsyncIterator[Server]:
        """Use the server at --target, or start one."""
        if self._options.target:
            yield Server(self._options.target)
            return
        engines = self._options.engines
        flags = (*self._options.server_flags, *(() if engines == 1 else ("--engines", str(engines))))
        async with own_server(rill(self._options.bundle, *flags), self._core) as server:
            yield server if engines == 1 else replace(server, connections=CONNECTIONS * engines)

    async def floor(self) -> None:
        """Measure the floors alone."""
        floors = self._floors()
        for streams in self._options.streams:
            self._bar.describe(f"batches of {streams:,} in process")
            at = floors.at(streams)
            for _ in range(WINDOWS):
                await sample(at, self._options.seconds / WINDOWS)
                self._bar.advance()
            self._found.floors += at

    async def load(self, server: Server) -> None:
        """Measure the closed loop, and the floors around its windows."""
        floors = self._floors()
        for streams in self._options.streams:
            self._bar.describe(f"{streams:,} streams over gRPC")
            at = floors.at(streams)
            self._found.floors += at
            load = await measure(
                server,
                self._workload(plain(self._options.max_chars)),
                streams,
                self._options.seconds,
                self._options.objective,
                at,
                self._bar.advance,
            )
            self._found.loads.append(load)

    async def waits(self, server: Server) -> None:
        """Measure the wait for first characters on an idle server and on a busy one."""
        seconds = self._options.seconds
        self._bar.describe("one stream at a time")
        self._found.idle = await idle_wait(server, self.model, seconds / 2)
        self._bar.advance()
        self._bar.describe(f"newcomers beside {NEWCOMER_STREAMS} streams")
        self._found.newcomer = await newcomer_wait(
            server,
            self.model,
            self._workload(plain(self._options.max_chars)),
            NEWCOMER_STREAMS,
            seconds,
            self._options.objective,
        )
        self._bar.advance()

    async def open(self, server: Server) -> None:
        """For each mix, measure its capacity by a closed loop, then the open loop at every rate."""
        seconds, objective = self._options.seconds, self._options.objective
        for name in self._options.mixes:
            self._bar.describe(f"{name} texts: the capacity")
            workload = self._workload(MIXES[name])
            full = await window(server, workload, CAPACITY_STREAMS, seconds, objective)
            # Texts that the model may end are shorter than the mix says.
            by_length = full.speed / workload.mean_generated
            capacity = full.tally.texts / full.client.seconds if self._bundle.vocabulary.ends else by_length
            if not capacity:
                raise BenchError(f"no {name} text arrived within {seconds:g} s; use a larger --seconds")
            self._bar.advance()
            for percent in self._options.percents:
                self._bar.describe(f"{name} texts: {percent:g} % of the capacity")
                workload = self._workload(MIXES[name])
                self._found.open.append(await open_loop(server, workload, capacity, percent, seconds, objective))
                self._bar.advance()

    async def peers(self) -> None:
        """Measure the same closed loop on each peer."""
        if MLSERVER not in installed_peers():
            self._found.notes.append("MLServer is not installed, so it was not measured")
        floors = self._floors()
        for name, what in installed_peers().items():
            command = python_command(f"rill.bench.peers.{name}", "--bundle", str(self._options.bundle))
            async with own_server(command, self._core) as server:
                peer = replace(server, stub=stub_of(name))
                for streams in PEER_STREAMS:
                    self._bar.describe(f"{what}: {streams} streams")
                    load = await measure(
                        peer,
                        self._workload(plain(self._options.max_chars)),
                        streams,
                        self._options.seconds,
                        self._options.objective,
                        floors.at(streams, ["decode"]),
                        self._bar.advance,
                    )
                    self._found.peers.append(Peer(name, what, load))

    async def profile(self) -> None:
        """Run a server with timers for each number of streams. If that fails among other parts, it is a note."""
        try:
            if self._options.target:
                raise BenchError("a running server cannot be profiled")
            for streams in PROFILE_STREAMS:
                self._bar.describe(f"the stages of a round: {streams} streams")
                self._found.profile.append(await self._profile(streams))
                self._bar.advance()
        except BenchError as error:
            if self._options.parts == ("profile",):
                raise
            self._found.notes.append(f"no profile: {error}")

    async def _profile(self, streams: int) -> Profile:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "profile.json"
            command = rill(self._options.bundle, *self._options.server_flags, FLAG, str(path))
            try:
                async with own_server(command, self._core) as server:
                    await window(
                        server,
                        self._workload(plain(self._options.max_chars)),
                        streams,
                        self._options.seconds,
                        self._options.objective,
                    )
            except ServerStartError as error:
                if f"unrecognized arguments: {FLAG}" in str(error):
                    raise BenchError(f"this version of the server has no {FLAG}") from None
                raise
            return read_profile(path, streams)

    def _workload(self, mix: Mix) -> Workload:
        return Workload(self.model, mix, self._bundle.vocabulary, self._options.top_p)

    def _floors(self) -> Floors:
        return Floors(self._bundle, self._options.device, self._options.top_p)
