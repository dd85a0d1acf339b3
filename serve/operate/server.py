"""The life of a server: start, serve until a signal, drain."""

import asyncio
import logging
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from rill.bundle import Bundle
from rill.serve.access.bearer_tokens import BearerTokens, RequireToken
from rill.serve.access.certificates import Certificates
from rill.serve.access.client_limits import ClientLimits
from rill.serve.api.resume_tokens import KEY_BYTES, ResumeTokens, read_key
from rill.serve.api.service import TextGeneration
from rill.serve.api.wire import ServiceHandlers, UnknownMethods
from rill.serve.config import ServerConfig
from rill.serve.engine.decoder import Decoder, one_line
from rill.serve.engine.device_turns import DeviceTurns
from rill.serve.engine.devices import CPU, choose_device, warn_about_two_runtimes
from rill.serve.errors import BrokenEngineError, DrainingError, StartError
from rill.serve.models.catalog import Catalog
from rill.serve.models.model import Model
from rill.serve.observe.metrics import count_unauthenticated
from rill.serve.observe.page import DRAINING, Readiness
from rill.serve.operate import http_gateway
from rill.serve.operate.gauges import keep_current
from rill.serve.operate.grpc_options import grpc_options
from rill.serve.operate.http_gateway import HttpGateway
from rill.serve.operate.memory import prepare_memory
from rill.serve.operate.ports import bind, own_address, require_free
from rill.serve.operate.private_listener import PrivateListener, make_identity
from rill.serve.operate.profile import Profile, ProfilingCall, ProfilingResponses, ProfilingTimer
from rill.signals import delivered, end_at_once
from rill.streams import discard_output
from rill.v1 import rill_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["TextGeneration"]
# After each round the engine needs the GIL back from the event loop at once: at Python's own 5 ms, rounds and messages
# take turns instead of overlapping, and 64 streams run at 0.6 times the speed.
GIL_SECONDS = 5e-5
STOP_SECONDS = 1.0  # of the drain, and at least: for the last messages
READ_SECONDS = 0.3  # that a message takes at most until another process on this machine has read it

log = logging.getLogger("rill")

Stop = asyncio.Queue[signal.Signals | BrokenEngineError]  # receives each reason to stop


@dataclass(frozen=True)
class Parent:
    """What one of several processes on a port gets from its parent (`supervisor`), which receives the signals.

    `listen` makes it call a function each time the parent says stop. `announce` tells it that the process listens.
    """

    keys: Sequence[bytes]  # of resume tokens
    private: PrivateListener | None
    listen: Callable[[Callable[[], None]], None]
    announce: Callable[[str], None]


async def serve(config: ServerConfig, readiness: Readiness, parent: Parent | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the server at once. Tells `readiness` so.

    A signal before the models are loaded ends the process at once, with status 128 + its number. Raises StartError, and
    BrokenEngineError after a drain because an engine cannot run any more.
    """
    sys.setswitchinterval(GIL_SECONDS)
    prepare_memory()
    tokens = ResumeTokens(parent.keys if parent else load_keys(config), config.resume_ttl)
    certificates = load_certificates(config)
    bearers = BearerTokens(config.auth_token_file) if config.auth_token_file else None
    private = parent.private if parent else private_listener(config)
    if not parent:
        require_free(config)  # before any model is loaded
    profile = Profile() if config.profile else None
    stop: Stop = asyncio.Queue()
    is_loaded, hangup = False, asyncio.Event()

    def on_stop(number: signal.Signals = signal.SIGTERM) -> None:
        if not is_loaded:  # nobody is served yet
            end_at_once(128 + number)
        stop.put_nowait(number)

    handlers = {number: partial(on_stop, number) for number in (signal.SIGTERM, signal.SIGINT)}
    if parent:
        parent.listen(on_stop)
        handlers = {}
    with delivered({**handlers, signal.SIGHUP: hangup.set}):
        models = Catalog(config.bundles, model_maker(config, stop.put_nowait, profile))
        service = _make_service(models, tokens, config, ClientLimits(config.max_streams_per_client, bearers), profile)
        reloading = asyncio.create_task(_reload_on_hangup(models, hangup))
        # Without a page nobody sees the gauges.
        watching = asyncio.create_task(keep_current(models)) if config.metrics_port is not None else None
        try:
            await models.start()
            async with (
                listening(service, models, config, certificates, bearers, private) as (address, target, healths),
                http_gateway.running(config, [target], private) as gateway,
            ):
                is_loaded = True
                line = (
                    f"rill: listening on {address} (models: {', '.join(models.names)}; "
                    f"provider: {models.default.provider})"
                )
                (parent.announce if parent else announce)("\n".join(filter(None, [line, gateway.line])))
                if not parent:
                    log_token_lifetime(config)
                readiness.obstacle = ""
                reason = await stop.get()
                readiness.obstacle = DRAINING
                log.info("draining: %s", _unfinished(sum(model.calls for model in models.all)))
                await healths.enter_graceful_shutdown()
                await _unless_again(stop, _drain(service, models, gateway, config.drain_seconds))
        finally:
            await models.close()
            reloading.cancel()
            if watching:
                watching.cancel()
    if config.profile and profile:
        profile.save(config.profile)
    log.info("stopped")
    if isinstance(reason, BrokenEngineError):
        raise reason


def _make_service(
    models: Catalog, tokens: ResumeTokens, config: ServerConfig, clients: ClientLimits, profile: Profile | None
) -> TextGeneration:
    if not profile:
        return TextGeneration(models, tokens, config, clients)
    messages, make_call = ProfilingResponses(profile, tokens), partial(ProfilingCall, profile)
    return TextGeneration(models, tokens, config, clients, messages, make_call)


async def check(config: ServerConfig) -> str:
    """Check that the server could start, without listening; returns a sentence. Raises StartError."""
    load_keys(config)
    load_certificates(config)
    if config.auth_token_file:
        BearerTokens(config.auth_token_file)
    models = Catalog(config.bundles, model_maker(config, lambda _: None))
    try:
        await models.start()
        return f"the configuration is valid: models: {', '.join(models.names)}; provider: {models.default.provider}"
    finally:
        await models.close()


def announce(text: str) -> None:
    """Print to stdout. Raises StartError where it cannot be written: whoever waits for it would wait forever."""
    try:
        print(text, flush=True)
    except OSError as error:
        discard_output()
        raise StartError(f"cannot write to stdout: {error.strerror}") from None


async def _reload_on_hangup(models: Catalog, hangup: asyncio.Event) -> None:
    """Read the bundles again at each SIGHUP; any number of signals during a reload cause one more."""
    while True:
        await hangup.wait()
        hangup.clear()
        await models.reload()


def load_keys(config: ServerConfig) -> list[bytes]:
    """Read the keys of resume tokens, or make one where no file is given. Raises StartError for a bad key file."""
    return [read_key(path) for path in config.resume_key_file] or [secrets.token_bytes(KEY_BYTES)]


def log_token_lifetime(config: ServerConfig) -> None:
    """Log that resume tokens are valid for the server's lifetime only, where they are."""
    if not config.resume_key_file:
        log.info("no --resume-key-file: resume tokens are valid for this server's lifetime only")


def private_listener(config: ServerConfig) -> PrivateListener | None:
    """Return where the gateway connects: where clients do, unless these need TLS."""
    return PrivateListener(make_identity()) if config.http_port is not None and config.tls_cert else None


def load_certificates(config: ServerConfig) -> Certificates | None:
    """Read the server's certificates; None without TLS. Raises StartError."""
    if not config.tls_cert and not config.tls_key:
        if config.tls_client_ca:
            raise StartError("--tls-client-ca needs --tls-cert and --tls-key: client certificates are part of TLS")
        return None
    if not (config.tls_cert and config.tls_key):
        raise StartError("--tls-cert and --tls-key go together: a certificate chain and its private key, both in PEM")
    return Certificates(config.tls_cert, config.tls_key, config.tls_client_ca)


def model_maker(
    config: ServerConfig, on_broken: Callable[[BrokenEngineError], None], profile: Profile | None = None
) -> Callable[[Bundle], Model]:
    """Return a function that makes a model of a bundle and warms it up, in any thread. Both raise StartError."""
    warn_about_two_runtimes()
    provider, device_id = choose_device(config.device)
    if config.engines > 1 and provider != CPU:
        raise StartError(
            f"--engines {config.engines} is for CPUs: on a GPU, which one process keeps busy, several only take turns; "
            "remove --engines, or add --device cpu"
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Of a process's share, one core is the event loop's.
    places = (cores // config.engines - 1) // config.threads
    device_turns = DeviceTurns(max(places, 1) if provider == CPU else 1)
    loop = asyncio.get_running_loop()

    def make(bundle: Bundle) -> Model:
        decoder = Decoder(bundle, provider, device_id, config.threads, 2**20 * config.gpu_memory)
        slots, waiting = config.max_streams, config.max_waiting
        try:
            timer = ProfilingTimer(profile) if profile else None
            return Model(bundle, decoder, slots, waiting, config.round_seconds, device_turns, loop, on_broken, timer)
        except Exception as error:  # the graphs fail, or memory is short: these have no narrower base
            raise StartError(f"bundle {bundle.name!r} cannot be run: {one_line(error)}") from error

    return make


@asynccontextmanager
async def listening(
    service: TextGeneration,
    models: Catalog,
    config: ServerConfig,
    certificates: Certificates | None = None,
    bearers: BearerTokens | None = None,
    private: PrivateListener | None = None,
) -> AsyncIterator[tuple[str, str, health.aio.HealthServicer]]:
    """Run a gRPC server; gives its address, the one for its gateway, and its health service.

    Raises StartError if an address is not available.
    """
    server = grpc.aio.server(
        interceptors=[RequireToken(bearers, count_unauthenticated)] if bearers else [],
        options=grpc_options(config, len(models.all)),
    )
    server.add_generic_rpc_handlers([ServiceHandlers(SERVICE, service, service.instead)])
    healths = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healths, server)
    if config.reflection:
        reflection.enable_server_reflection((SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    server.add_generic_rpc_handlers([UnknownMethods()])
    if certificates:
        address = bind(config, partial(server.add_secure_port, server_credentials=certificates.credentials()))
    else:
        address = bind(config, server.add_insecure_port)
    target = private.bind(server) if private else own_address(config, address)
    for name in ("", SERVICE.full_name):
        await healths.set(name, health_pb2.HealthCheckResponse.SERVING)
    await server.start()
    try:
        yield address, target, healths
    finally:
        await server.stop(STOP_SECONDS)
        await service.close()


async def _unless_again(stop: Stop, draining: Coroutine[Any, Any, None]) -> None:
    """Wait for it to end, or cancel it when there is another reason to stop."""
    drained, again = asyncio.create_task(draining), asyncio.create_task(stop.get())
    await asyncio.wait([drained, again], return_when=asyncio.FIRST_COMPLETED)
    drained.cancel()
    again.cancel()


async def _drain(service: TextGeneration, models: Catalog, gateway: HttpGateway, seconds: float) -> None:
    """Refuse new streams, let running ones finish, and end the rest early enough to send their last messages.

    At last end the gateway, which gives those of its streams that have no end yet a resume token.
    """
    gateway.expect_end()
    service.drain()
    models.freeze()
    for model in models.all:
        model.slots.refuse_waiting(DrainingError("the server is shutting down and takes no new streams"))
    await _wait_for_calls(models, max(seconds - STOP_SECONDS, 0))
    is_cut = any(model.calls for model in models.all)
    for model in models.all:
        model.drain()
    if gateway.line:
        if is_cut:  # the gateway is to read the last messages, and their tokens, before it is to end
            await _wait_for_calls(models, STOP_SECONDS)
            await asyncio.sleep(READ_SECONDS)
        await gateway.end()


async def _wait_for_calls(models: Catalog, seconds: float) -> None:
    """Wait until no calls are left, or for so many seconds."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while any(model.calls for model in models.all):  # noqa: ASYNC110  # once, for seconds
                await asyncio.sleep(0.01)


def _unfinished(calls: int) -> str:
    return "no unfinished calls" if not calls else "1 unfinished call" if calls == 1 else f"{calls} unfinished calls"
