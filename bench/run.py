"""The parts of the benchmark, one after the other."""

import asyncio
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from rill.bench.bar import Bar
from rill.bench.closed import WINDOWS, measure, window
from rill.bench.errors import BenchError
from rill.bench.floors import Floors, sample
from rill.bench.idle import idle_wait, newcomer_wait
from rill.bench.open import CAPACITY_STREAMS, open_loop
from rill.bench.options import Options
from rill.bench.peers import MLSERVER, installed_peers, stub_of
from rill.bench.peers import STREAMS as PEER_STREAMS
from rill.bench.profile import FLAG, Profile, read_profile
from rill.bench.profile import STREAMS as PROFILE_STREAMS
from rill.bench.results import Found, Peer
from rill.bench.server import CONNECTIONS, Server, on_core, own_server, rill, served_name
from rill.bench.workload import MIXES, Mix, Texts, plain
from rill.bundle import Bundle

NEWCOMER_STREAMS = 64  # that are busy when a newcomer asks


async def run(options: Options, bundle: Bundle) -> Found:
    """All that is asked for. Raises BenchError, StartError or ConfigError if it cannot be done."""
    _end_on_signals()
    found = Found(pinned=options.cores)
    with on_core(options.cores[1] if options.cores else None), Bar(_measurements(options)) as bar:
        parts = Parts(options, bundle, found, bar)
        if options.parts == ("floor",):
            await parts.floor()
        if "load" in options.parts or "open" in options.parts:
            async with parts.server() as server:
                found.server = server
                parts.model = await served_name(server.target, bundle.model_id)
                if "load" in options.parts:
                    await parts.load(server)
                    await parts.waits(server)
                if "open" in options.parts:
                    await parts.open(server)
                found.peak_megabytes = server.peak_megabytes()
        if options.peers:
            await parts.peers()
        if "profile" in options.parts:
            await parts.profile()
    return found


def _end_on_signals() -> None:
    """Let signals cancel this task, so that no server is left; a closed terminal too, unless nohup wants otherwise."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is signal.SIG_DFL:
            loop.add_signal_handler(number, task.cancel)


def _measurements(options: Options) -> int:
    """How often the bar advances."""
    loads = len(options.streams) * WINDOWS
    return (
        (loads if options.parts == ("floor",) else 0)
        + ((loads + 2) if "load" in options.parts else 0)
        + (len(options.mixes) * (1 + len(options.percents)) if "open" in options.parts else 0)
        + (len(installed_peers()) * len(PEER_STREAMS) * WINDOWS if options.peers else 0)
        + (len(PROFILE_STREAMS) if "profile" in options.parts else 0)
    )


class Parts:
    """What each puts into `found`."""

    def __init__(self, options: Options, bundle: Bundle, found: Found, bar: Bar) -> None:
        self._options, self._bundle, self._found, self._bar = options, bundle, found, bar
        self._core = options.cores[0] if options.cores else None
        self.model = bundle.name  # what the server calls it

    @asynccontextmanager
    async def server(self) -> AsyncIterator[Server]:
        """The server at --target, or one of our own."""
        if self._options.target:
            yield Server(self._options.target)
            return
        engines = self._options.engines
        flags = (*self._options.server_flags, *(() if engines == 1 else ("--engines", str(engines))))
        async with own_server(rill(self._options.bundle, *flags), self._core) as server:
            yield server if engines == 1 else replace(server, connections=CONNECTIONS * engines)

    async def floor(self) -> None:
        """The floors alone."""
        floors = self._floors()
        for streams in self._options.streams:
            self._bar.says(f"batches of {streams:,} in process")
            at = floors.at(streams)
            for _ in range(WINDOWS):
                await sample(at, self._options.seconds / WINDOWS)
                self._bar.advance()
            self._found.floors += at

    async def load(self, server: Server) -> None:
        """The closed loop, and the floors around its windows."""
        floors = self._floors()
        for streams in self._options.streams:
            self._bar.says(f"{streams:,} streams over gRPC")
            at = floors.at(streams)
            self._found.floors += at
            load = await measure(
                server,
                self._texts(plain(self._options.max_chars)),
                streams,
                self._options.seconds,
                self._options.objective,
                at,
                self._bar.advance,
            )
            self._found.loads.append(load)

    async def waits(self, server: Server) -> None:
        """First characters on an idle server and on a busy one."""
        seconds = self._options.seconds
        self._bar.says("one stream at a time")
        self._found.idle = await idle_wait(server, self.model, seconds / 2)
        self._bar.advance()
        self._bar.says(f"newcomers beside {NEWCOMER_STREAMS} streams")
        self._found.newcomer = await newcomer_wait(
            server,
            self.model,
            self._texts(plain(self._options.max_chars)),
            NEWCOMER_STREAMS,
            seconds,
            self._options.objective,
        )
        self._bar.advance()

    async def open(self, server: Server) -> None:
        """For each mix its capacity, by a closed loop, then the open loop at every rate."""
        seconds, objective = self._options.seconds, self._options.objective
        for name in self._options.mixes:
            self._bar.says(f"{name} texts: the capacity")
            texts = self._texts(MIXES[name])
            full = await window(server, texts, CAPACITY_STREAMS, seconds, objective)
            capacity = full.speed / texts.mean_generated
            if not capacity:
                raise BenchError(f"no {name} text came within {seconds:g} s; give more --seconds")
            self._bar.advance()
            for percent in self._options.percents:
                self._bar.says(f"{name} texts: {percent:g} % of the capacity")
                texts = self._texts(MIXES[name])
                self._found.open.append(await open_loop(server, texts, capacity, percent, seconds, objective))
                self._bar.advance()

    async def peers(self) -> None:
        """The same closed loop on each peer."""
        if MLSERVER not in installed_peers():
            self._found.notes.append("MLServer is not installed: not measured")
        floors = self._floors()
        for name, what in installed_peers().items():
            command = [sys.executable, "-m", f"rill.bench.peers.{name}", "--bundle", str(self._options.bundle)]
            async with own_server(command, self._core) as server:
                peer = replace(server, stub=stub_of(name))
                for streams in PEER_STREAMS:
                    self._bar.says(f"{what}: {streams} streams")
                    load = await measure(
                        peer,
                        self._texts(plain(self._options.max_chars)),
                        streams,
                        self._options.seconds,
                        self._options.objective,
                        floors.at(streams, ["decode"]),
                        self._bar.advance,
                    )
                    self._found.peers.append(Peer(name, what, load))

    async def profile(self) -> None:
        """A server with timers for each number of streams; a note instead where other parts are worth showing."""
        try:
            if self._options.target:
                raise BenchError("a running server cannot be profiled")
            for streams in PROFILE_STREAMS:
                self._bar.says(f"where a round's time goes: {streams} streams")
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
                        self._texts(plain(self._options.max_chars)),
                        streams,
                        self._options.seconds,
                        self._options.objective,
                    )
            except BenchError as error:
                if f"unrecognized arguments: {FLAG}" in str(error):
                    raise BenchError(f"this version of the server has no {FLAG}") from None
                raise
            return read_profile(path, streams)

    def _texts(self, mix: Mix) -> Texts:
        return Texts(self.model, mix, self._bundle.vocabulary.symbols, self._options.top_p)

    def _floors(self) -> Floors:
        return Floors(self._bundle, self._options.device, self._options.top_p)
