"""The server's life: start up, serve until a signal, drain."""

import asyncio
import logging
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from rill.bundle import Bundle
from rill.serve.access.bearer_tokens import BearerTokens, RequireToken
from rill.serve.access.certificates import Certificates
from rill.serve.access.client_limits import ClientLimits
from rill.serve.api.requests import Limits
from rill.serve.api.resume_tokens import KEY_BYTES, ResumeTokens, read_key
from rill.serve.api.service import TextGeneration
from rill.serve.api.wire import ServiceHandlers
from rill.serve.engine.decoder import Decoder, one_line
from rill.serve.engine.device_turns import DeviceTurns
from rill.serve.engine.devices import CPU, choose_device, warn_of_two_runtimes
from rill.serve.errors import BrokenEngineError, DrainingError, StartError
from rill.serve.models.catalog import Catalog
from rill.serve.models.model import Model
from rill.serve.observe.metrics import IS_SHARED
from rill.serve.operate.gauges import keep_current
from rill.serve.operate.memory import prepare_memory
from rill.serve.operate.profile import Profile, ProfilingCall, ProfilingResponses, ProfilingTimer
from rill.v1 import rill_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["TextGeneration"]
# After each round the engine wants the GIL back from the event loop at once: at Python's own 5 ms, rounds and messages
# take turns instead of overlapping, and 64 streams are 0.6 times as fast.
GIL_SECONDS = 5e-5
PENDING_CALLS = 4096
METADATA_BYTES = 16_384  # of a call: gRPC's own default for what is refused always
STOP_SECONDS = 1.0  # of the drain, and at least: for the last messages

log = logging.getLogger("rill")


@dataclass(frozen=True)
class Settings:
    """What `python -m rill.serve` can be told; the fields are its flags."""

    bundles: Sequence[str]
    host: str = "127.0.0.1"
    port: int = 50051
    engines: int = 1  # processes on the port
    device: str = "auto"
    threads: int = 1
    gpu_memory: int = 0  # MiB that ONNX Runtime may use for a graph; 0: no limit
    max_streams: int = 4096
    max_waiting: int = 1024
    max_prompt: int = Limits.prompt
    max_chars: int = Limits.chars
    max_score_chars: int = Limits.score
    max_streams_per_client: int = 0  # 0: no limit
    max_connections: int = 0  # 0: no limit
    tls_cert: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    auth_token_file: str = ""
    reflection: bool = True
    resume_key_file: Sequence[str] = ()
    resume_ttl: float = 7 * 86_400
    round_seconds: float = 0.010
    drain_seconds: float = 10.0
    keepalive_seconds: float = 30.0
    stall_seconds: float = Limits.stall
    profile: Path | None = None
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    log_format: str = "text"
    access_log: bool = True


Stop = asyncio.Queue[signal.Signals | BrokenEngineError]  # receives whatever asks the server to


@dataclass(frozen=True)
class Parent:
    """What one of several processes on a port has of its parent (`rill.serve.operate.supervisor`), to which signals go.

    `listen` lets the queue receive a signal each time the parent says stop.
    """

    keys: Sequence[bytes]  # of resume tokens
    listen: Callable[[Stop], None]


async def serve(settings: Settings, parent: Parent | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends at once.

    Raises StartError, and BrokenEngineError after a drain because an engine can run no more.
    """
    sys.setswitchinterval(GIL_SECONDS)
    prepare_memory()
    tokens = ResumeTokens(parent.keys if parent else keys_of(settings), settings.resume_ttl)
    certificates = _certificates(settings)
    bearers = BearerTokens(settings.auth_token_file) if settings.auth_token_file else None
    stop: Stop = asyncio.Queue()
    profile = Profile() if settings.profile else None
    models = Catalog(settings.bundles, _maker(settings, stop.put_nowait, profile))
    reloading = asyncio.create_task(_reload_on_hangup(models))
    # Without a page nobody sees them.
    watching = asyncio.create_task(keep_current(models)) if settings.metrics_port is not None or IS_SHARED else None
    try:
        await models.start()
        (parent.listen if parent else listen_for_signals)(stop)  # not before: while loading, Ctrl-C ends at once
        limits = Limits(settings.max_prompt, settings.max_chars, settings.max_score_chars, settings.stall_seconds)
        clients = ClientLimits(settings.max_streams_per_client, bearers)
        if profile:
            messages, make_call = ProfilingResponses(profile, tokens), partial(ProfilingCall, profile)
            service = TextGeneration(models, tokens, limits, clients, messages, make_call)
        else:
            service = TextGeneration(models, tokens, limits, clients)
        async with _listening(service, models, settings, certificates, bearers) as (port, healths):
            print(
                f"rill: listening on {settings.host}:{port} (models: {', '.join(models.names)}; "
                f"provider: {models.default.provider})",
                flush=True,
            )
            if not parent:
                say_how_long_tokens_last(settings)
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
        if watching:
            watching.cancel()
    if settings.profile and profile:
        profile.save(settings.profile)
    log.info("stopped")
    if isinstance(reason, BrokenEngineError):
        raise reason


async def check(settings: Settings) -> str:
    """See whether all of this can be served, without listening; returns what would be. Raises StartError."""
    keys_of(settings)
    _certificates(settings)
    if settings.auth_token_file:
        BearerTokens(settings.auth_token_file)
    models = Catalog(settings.bundles, _maker(settings, lambda _: None))
    try:
        await models.start()
        return f"the configuration is good: models: {', '.join(models.names)}; provider: {models.default.provider}"
    finally:
        await models.close()


async def _reload_on_hangup(models: Catalog) -> None:
    """Read the bundles again at each SIGHUP; any number of them while that goes on are one more."""
    hangup = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hangup.set)
    while True:
        await hangup.wait()
        hangup.clear()
        await models.reload()


def listen_for_signals(stop: asyncio.Queue[Any]) -> None:
    """Let `stop` receive the signals which ask the server to."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.put_nowait, number)


def keys_of(settings: Settings) -> list[bytes]:
    """The keys of resume tokens; a new one where no file is given. Raises StartError for a key file that is none."""
    return [read_key(path) for path in settings.resume_key_file] or [secrets.token_bytes(KEY_BYTES)]


def say_how_long_tokens_last(settings: Settings) -> None:
    """In the log, where it is not long."""
    if not settings.resume_key_file:
        log.info("no --resume-key-file: resume tokens are good for this server's lifetime only")


def _certificates(settings: Settings) -> Certificates | None:
    """What the server shows its clients. Raises StartError."""
    if not settings.tls_cert and not settings.tls_key:
        if settings.tls_client_ca:
            raise StartError("--tls-client-ca needs --tls-cert and --tls-key: clients show certificates over TLS only")
        return None
    if not (settings.tls_cert and settings.tls_key):
        raise StartError("--tls-cert and --tls-key go together: a certificate chain and its private key, both in PEM")
    return Certificates(settings.tls_cert, settings.tls_key, settings.tls_client_ca)


def _maker(
    settings: Settings, on_broken: Callable[[BrokenEngineError], None], profile: Profile | None = None
) -> Callable[[Bundle], Model]:
    """What makes a model of a bundle, warmed up, in any thread. Both raise StartError."""
    warn_of_two_runtimes()
    provider, device_id = choose_device(settings.device)
    if settings.engines > 1 and provider != CPU:
        raise StartError(
            f"--engines {settings.engines} is for CPUs: processes only take turns at a GPU, which one keeps busy; "
            "leave --engines out, or add --device cpu"
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Of a process's share, one core is the event loop's.
    places = (cores // settings.engines - 1) // settings.threads
    device_turns = DeviceTurns(max(places, 1) if provider == CPU else 1)
    loop = asyncio.get_running_loop()

    def make(bundle: Bundle) -> Model:
        decoder = Decoder(bundle, provider, device_id, settings.threads, 2**20 * settings.gpu_memory)
        slots, waiting = settings.max_streams, settings.max_waiting
        try:
            timer = ProfilingTimer(profile) if profile else None
            return Model(bundle, decoder, slots, waiting, settings.round_seconds, device_turns, loop, on_broken, timer)
        except Exception as error:  # its graphs fail, or there is not enough memory: no narrower base for all of that
            raise StartError(f"bundle {bundle.name!r} cannot be run: {one_line(error)}") from error

    return make


@asynccontextmanager
async def _listening(
    service: TextGeneration,
    models: Catalog,
    settings: Settings,
    certificates: Certificates | None = None,
    bearers: BearerTokens | None = None,
) -> AsyncIterator[tuple[int, health.aio.HealthServicer]]:
    """A started gRPC server: its port and its health service. Raises StartError if the port cannot be had."""
    server = grpc.aio.server(
        interceptors=[RequireToken(bearers)] if bearers else [], options=_options(settings, len(models.all))
    )
    server.add_generic_rpc_handlers([ServiceHandlers(SERVICE, service, service.instead)])
    healths = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healths, server)
    if settings.reflection:
        reflection.enable_server_reflection((SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    try:
        host = f"[{settings.host}]" if ":" in settings.host.strip("[]") and settings.host[0] != "[" else settings.host
        address = f"{host}:{settings.port}"
        port = (
            server.add_secure_port(address, certificates.credentials())
            if certificates
            else server.add_insecure_port(address)
        )
    except RuntimeError:
        port = 0
    if not port:
        raise port_error(settings)
    for name in ("", SERVICE.full_name):
        await healths.set(name, health_pb2.HealthCheckResponse.SERVING)
    await server.start()
    try:
        yield port, healths
    finally:
        await server.stop(STOP_SECONDS)
        service.close()


def _options(settings: Settings, models: int) -> list[tuple[str, int]]:
    """What gRPC is told, for a server of so many models."""
    calls = max(models * (settings.max_streams + settings.max_waiting), PENDING_CALLS)
    keepalive = int(1000 * settings.keepalive_seconds)
    return [
        # gRPC cancels some of the calls that come faster than it hands them over: from 1,000 on, left to itself.
        # Those who find no place are to be told that, and when to come again.
        ("grpc.server.max_pending_requests", calls),
        ("grpc.server.max_pending_requests_hard_limit", 2 * calls),
        # Clients ask whether the server is still there, however long a slow stream says nothing.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        # ... and are asked whether they are, since one that has vanished without a word reads nothing either.
        ("grpc.keepalive_time_ms", keepalive),
        ("grpc.keepalive_timeout_ms", keepalive),
        # Where a ping is under way for other reasons, keepalive sends none.
        ("grpc.http2.ping_timeout_ms", keepalive),
        # A port in use is an error, not a second server; of several processes, `rill.serve.operate.supervisor` sees to
        # that.
        ("grpc.so_reuseport", int(settings.engines > 1)),
        # A text that is too long should get our own answer: room for 4 bytes a character and more.
        (
            "grpc.max_receive_message_length",
            max(8 * settings.max_prompt, 4 * settings.max_score_chars) + 65_536,
        ),
        # Below the second limit and above the first, gRPC refuses some calls at random: one limit for all.
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES),
        # Whoever connects and says nothing, or what is no gRPC, is gone after this; the default is two minutes.
        ("grpc.server_handshake_timeout_ms", 10_000),
        # More on one connection than the server has place for twice over would only be refused.
        ("grpc.max_concurrent_streams", 2 * calls + 100),
        *([("grpc.max_allowed_incoming_connections", settings.max_connections)] if settings.max_connections else []),
    ]


async def _drain(service: TextGeneration, models: Catalog, seconds: float) -> None:
    """Refuse new streams, let live ones finish, and end those that have not in time to be told."""
    service.drain()
    models.freeze()
    for model in models.all:
        model.slots.refuse_waiting(DrainingError("the server is going away and takes no new streams"))
    loop = asyncio.get_running_loop()
    deadline = loop.time() + max(seconds - STOP_SECONDS, 0)
    while any(model.calls for model in models.all) and loop.time() < deadline:  # noqa: ASYNC110  # once, for seconds
        await asyncio.sleep(0.01)
    for model in models.all:
        model.drain()


def port_error(settings: Settings) -> StartError:
    """The port cannot be had."""
    return StartError(f"cannot listen on {settings.host}:{settings.port}: in use, or no address of this machine")
