"""The server's life: start up, serve until a signal, drain."""

import asyncio
import atexit
import logging
import logging.handlers
import os
import queue
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from export.bundle import Bundle
from protos import rill_pb2 as pb
from protos.rill_pb2_grpc import add_TextGenerationServicer_to_server
from serve.errors import BrokenEngineError, DrainingError, StartError
from serve.model import Model
from serve.models import Models
from serve.parsing import Parsing
from serve.profile import Profile
from serve.request import Limits
from serve.runtime import CPU, Decoder, choose_device, warn_of_two_runtimes
from serve.service import TextGeneration
from serve.tokens import KEY_BYTES, Tokens, read_key
from serve.turnstile import Turnstile

SERVICE = pb.DESCRIPTOR.services_by_name["TextGeneration"].full_name
# After each round the engine wants the GIL back from the event loop at once: at Python's own 5 ms, rounds and messages
# take turns instead of overlapping, and 64 streams are 0.6 times as fast.
GIL_SECONDS = 5e-5
STOP_SECONDS = 1.0  # of the drain, and at least: for the last messages

log = logging.getLogger("rill")


@dataclass(frozen=True)
class Settings:
    """What `python -m serve` can be told; the fields are its flags."""

    bundles: Sequence[str]
    host: str = "127.0.0.1"
    port: int = 50051
    device: str = "auto"
    threads: int = 1
    gpu_memory: int = 0  # MiB that ONNX Runtime may use for a graph; 0: no limit
    max_streams: int = 4096
    max_waiting: int = 1024
    max_prompt: int = Limits.prompt
    max_chars: int = Limits.chars
    max_score_chars: int = Limits.score
    resume_key_file: Sequence[str] = ()
    resume_ttl: float = 7 * 86_400
    round_seconds: float = 0.010
    drain_seconds: float = 10.0
    profile: Path | None = None


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends at once.

    Raises StartError, and BrokenEngineError after a drain because an engine can run no more.
    """
    sys.setswitchinterval(GIL_SECONDS)
    tokens = _tokens(settings)
    stop: asyncio.Queue[signal.Signals | BrokenEngineError] = asyncio.Queue()
    models = Models(settings.bundles, _maker(settings, stop.put_nowait))
    reloading = asyncio.create_task(_reload_on_hangup(models))
    try:
        await models.start()
        _listen_for_signals(stop)  # not before: while loading, Ctrl-C ends at once
        limits = Limits(settings.max_prompt, settings.max_chars, settings.max_score_chars)
        service = TextGeneration(models, tokens, limits)
        if settings.profile:
            profile = Profile()
            profile.watch(service, models.all)
        async with _listening(service, models, settings) as (port, healths):
            print(
                f"rill: listening on {settings.host}:{port} (models: {', '.join(models.names)}; "
                f"provider: {models.default.provider})",
                flush=True,
            )
            if not settings.resume_key_file:
                log.info("no --resume-key-file: resume tokens are good for this server's lifetime only")
            reason = await stop.get()
            log.info("draining: %d calls", sum(model.calls for model in models.all))
            await healths.enter_graceful_shutdown()
            drained = asyncio.create_task(_drain(service, models, settings.drain_seconds))
            again = asyncio.create_task(stop.get())
            await asyncio.wait([drained, again], return_when=asyncio.FIRST_COMPLETED)
            drained.cancel()
            again.cancel()
    finally:
        await models.close()
        reloading.cancel()
    if settings.profile:
        profile.save(settings.profile)
    log.info("stopped")
    if isinstance(reason, BrokenEngineError):
        raise reason


async def _reload_on_hangup(models: Models) -> None:
    """Read the bundles again at each SIGHUP; any number of them while that goes on are one more."""
    hangup = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hangup.set)
    while True:
        await hangup.wait()
        hangup.clear()
        await models.reload()


def _listen_for_signals(stop: asyncio.Queue[Any]) -> None:
    """Let `stop` receive the signals which ask the server to."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.put_nowait, number)


def _tokens(settings: Settings) -> Tokens:
    """What makes and reads resume tokens. Raises StartError for a key file that is none."""
    keys = [read_key(path) for path in settings.resume_key_file]
    return Tokens(keys or [secrets.token_bytes(KEY_BYTES)], settings.resume_ttl)


def _maker(settings: Settings, on_broken: Callable[[BrokenEngineError], None]) -> Callable[[Bundle], Model]:
    """What makes a model of a bundle, warmed up, in any thread. Both raise StartError."""
    warn_of_two_runtimes()
    provider, device_id = choose_device(settings.device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # One core is the event loop's.
    turnstile = Turnstile(max((cores - 1) // settings.threads, 1) if provider == CPU else 1)
    loop = asyncio.get_running_loop()

    def make(bundle: Bundle) -> Model:
        decoder = Decoder(bundle, provider, device_id, settings.threads, 2**20 * settings.gpu_memory)
        slots, waiting = settings.max_streams, settings.max_waiting
        return Model(bundle, decoder, slots, waiting, settings.round_seconds, turnstile, loop, on_broken)

    return make


@asynccontextmanager
async def _listening(
    service: TextGeneration, models: Models, settings: Settings
) -> AsyncIterator[tuple[int, health.aio.HealthServicer]]:
    """A started gRPC server: its port and its health service. Raises StartError if the port cannot be had."""
    calls = len(models.all) * (settings.max_streams + settings.max_waiting)
    server = grpc.aio.server(
        interceptors=[Parsing(SERVICE)],
        options=[
            # gRPC cancels some of the calls that come faster than it hands them over: from 1,000 on, left to itself.
            ("grpc.server.max_pending_requests", calls),
            ("grpc.server.max_pending_requests_hard_limit", 2 * calls),
            # Clients ask whether the server is still there, however long a slow stream says nothing.
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.so_reuseport", 0),  # a port in use is an error, not a second server
            # A text that is too long should get our own answer: room for 4 bytes a character and more.
            (
                "grpc.max_receive_message_length",
                max(8 * settings.max_prompt, 4 * settings.max_score_chars) + 65_536,
            ),
        ],
    )
    add_TextGenerationServicer_to_server(service, server)
    healths = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healths, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    try:
        host = f"[{settings.host}]" if ":" in settings.host.strip("[]") and settings.host[0] != "[" else settings.host
        port = server.add_insecure_port(f"{host}:{settings.port}")
    except RuntimeError:
        port = 0
    if not port:
        raise StartError(f"cannot listen on {settings.host}:{settings.port}: in use, or no address of this machine")
    for name in ("", SERVICE):
        await healths.set(name, health_pb2.HealthCheckResponse.SERVING)
    await server.start()
    try:
        yield port, healths
    finally:
        await server.stop(STOP_SECONDS)


async def _drain(service: TextGeneration, models: Models, seconds: float) -> None:
    """Refuse new streams, let live ones finish, and end those that have not in time to be told."""
    service.drain()
    models.keep()
    for model in models.all:
        model.admission.refuse(DrainingError("the server is going away and takes no new streams"))
    loop = asyncio.get_running_loop()
    deadline = loop.time() + max(seconds - STOP_SECONDS, 0)
    while any(model.calls for model in models.all) and loop.time() < deadline:  # noqa: ASYNC110  # once, for seconds
        await asyncio.sleep(0.01)
    for model in models.all:
        model.drain()


def log_to_stderr() -> None:
    """Log through a queue, so that a slow stderr never holds up the event loop."""
    lines: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    out = logging.StreamHandler(sys.stderr)
    out.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    listener = logging.handlers.QueueListener(lines, out)
    listener.start()
    log.addHandler(logging.handlers.QueueHandler(lines))
    log.setLevel(logging.INFO)
    log.propagate = False
    atexit.register(listener.stop)
