"""Access to a server: TLS, client certificates, bearer tokens, limits."""

import os
import re
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from types import SimpleNamespace

import grpc
import pytest
from certificates import DAY, make_certificate
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from servers import run_server, wait_until

from rill.client.aio import AsyncClient
from rill.client.errors import ServerError
from rill.client.security import Security
from rill.client.sync import Client
from rill.serve.access import bearer_tokens as bearer
from rill.serve.access.bearer_tokens import CHECK_SECONDS, BearerTokens
from rill.serve.access.certificates import Certificates
from rill.serve.access.client_limits import ClientLimits
from rill.serve.config import ServerConfig
from rill.serve.errors import ClientLimitError, StartError
from rill.serve.operate.server import load_certificates
from rill.serve.operate.start import exposure_of
from rill.v1 import rill_pb2 as pb

ALICE, BOB, EVE = "alice-0123456789abcdef", "bob-0123456789abcdef", "eve-0123456789abcdef"


@pytest.fixture(scope="module")
def pki():
    """An authority with the certificates it has issued, and a foreign authority."""
    authority, stranger = make_certificate("authority"), make_certificate("stranger")
    return SimpleNamespace(
        authority=authority,
        stranger=stranger,
        server=make_certificate("server", authority),
        client=make_certificate("client", authority),
        foreign_server=make_certificate("server", stranger),
        foreign_client=make_certificate("client", stranger),
    )


def secret_file(path, text):
    """Replace a file atomically, as operators should."""
    aside = path.with_suffix(".new")
    aside.touch(0o600)
    aside.write_text(text)
    aside.replace(path)
    return path


def code_of(call):
    with pytest.raises(grpc.RpcError) as caught:
        list(call) if hasattr(call, "__iter__") else call()
    return caught.value.code()


def refused(client):
    with pytest.raises(ServerError) as caught:
        client.models(timeout=10)
    return caught.value


# ---- TLS


@pytest.fixture(scope="module")
def tls_server(tiny_folder, pki, tmp_path_factory):
    chain, key = pki.server.write(tmp_path_factory.mktemp("tls"), "server")
    with run_server(tiny_folder, "--tls-cert", chain, "--tls-key", key) as running:
        yield running


def test_tls(tls_server, server, pki):
    with (
        server.client() as plain,
        Client(tls_server.target, security=Security(root_certificates=pki.authority.chain)) as client,
    ):
        parameters = {"max_chars": 500, "seed": 5}
        assert "".join(client.generate("To", **parameters)) == "".join(plain.generate("To", **parameters))
        assert [message.total.chars for message in client.score("abc")][-1] == 3


async def test_tls_for_asyncio(tls_server, pki):
    async with AsyncClient(tls_server.target, security=Security(root_certificates=pki.authority.chain)) as client:
        assert len("".join([piece async for piece in client.generate("To", max_chars=50)])) == 50


@pytest.mark.parametrize(
    ("security", "message"),
    [
        (lambda pki: Security(), "it may require TLS"),
        (lambda pki: Security(tls=True), "is not signed by a trusted authority"),
        (lambda pki: Security(root_certificates=pki.stranger.chain), "is not signed by a trusted authority"),
        (lambda pki: Security(root_certificates=b"garbage"), "the certificates or the key given to this client"),
    ],
)
def test_connection_errors_are_explained(tls_server, pki, security, message):
    with Client(tls_server.target, security=security(pki), retry_seconds=0) as client:
        error = refused(client)
    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert message in str(error)
    assert tls_server.target in str(error)


def test_a_server_without_tls_is_recognized(server, pki):
    with Client(server.target, security=Security(root_certificates=pki.authority.chain)) as client:
        assert "the server does not use TLS" in str(refused(client))


def test_certificates_are_renewed_while_a_stream_runs(tiny_folder, pki, tmp_path):
    chain, key = pki.server.write(tmp_path, "server")
    before, after = (Security(root_certificates=ca.chain) for ca in (pki.authority, pki.stranger))
    with run_server(tiny_folder, "--tls-cert", chain, "--tls-key", key) as running, ExitStack() as stack:

        def client(security):
            return stack.enter_context(Client(running.target, security=security))

        stream = client(before).stream(pb.GenerateRequest(chars_per_second=50))
        next(stream)
        chain.write_bytes(pki.foreign_server.chain)  # its key follows
        assert client(before).models()
        key.write_bytes(pki.foreign_server.key)
        assert client(after).models()
        chain.unlink()
        assert client(after).models()
        assert next(stream).text
        stream.close()
        status, log = running.stop()
    assert status == 0
    assert log.count("does not belong to the certificate in --tls-cert") == 1
    assert log.count(f"--tls-cert {chain} does not exist; the previous content stays in use") == 1
    assert "Handshake failed" not in log


def test_client_certificates_can_be_required(tiny_folder, pki, tmp_path):
    chain, key = pki.server.write(tmp_path, "server")
    authority, _ = pki.authority.write(tmp_path, "authority")
    with run_server(tiny_folder, "--tls-cert", chain, "--tls-key", key, "--tls-client-ca", authority) as running:
        known = Security(root_certificates=pki.authority.chain)
        for certificate in (None, (pki.foreign_client.key, pki.foreign_client.chain)):
            security = replace(known, certificate=certificate)
            with Client(running.target, security=security, retry_seconds=0) as client:
                assert "a client certificate that it trusts" in str(refused(client))
        own = (pki.client.key, pki.client.chain)
        with Client(running.target, security=replace(known, certificate=own)) as client:
            assert len("".join(client.generate("To", max_chars=50))) == 50


@pytest.fixture
def tls_files(pki, tmp_path):
    """Files of all kinds, and a missing one."""
    pki.server.write(tmp_path, "server")
    pki.client.write(tmp_path, "client")
    make_certificate("expired", pki.authority, ends=-DAY).write(tmp_path, "expired")
    password = serialization.BestAvailableEncryption(b"password")
    other = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for name, content in [
        ("empty", b""),
        ("damaged", pki.server.chain[:200]),
        ("encrypted.key", pki.server.key_with(password)),
        ("ed25519.key", other),
        ("large", bytes(2**20 + 1)),
    ]:
        (tmp_path / name).write_bytes(content)
    return lambda *names: [str(tmp_path / name) if name else "" for name in names]


@pytest.mark.parametrize(
    ("cert", "key", "client_ca", "message"),
    [
        ("server.pem", "", "", "--tls-cert and --tls-key go together"),
        ("", "server.key", "", "--tls-cert and --tls-key go together"),
        ("", "", "client.pem", "--tls-client-ca needs --tls-cert and --tls-key"),
        ("nothing", "server.key", "", "--tls-cert .*nothing does not exist"),
        (".", "server.key", "", "--tls-cert .* is not a file"),
        ("server.pem", "nothing", "", "--tls-key .*nothing does not exist"),
        ("server.pem", "server.key", "nothing", "--tls-client-ca .*nothing does not exist"),
        ("server.pem", "client.key", "", "--tls-key .* does not belong to the certificate in --tls-cert"),
        ("server.key", "server.key", "", "--tls-cert .* contains no PEM certificate"),
        ("server.pem", "server.pem", "", "--tls-key .* contains no PEM private key"),
        ("empty", "server.key", "", "--tls-cert .* contains no PEM certificate"),
        ("damaged", "server.key", "", "--tls-cert .* contains no PEM certificate"),
        ("large", "server.key", "", "--tls-cert .* is larger than"),
        ("server.pem", "encrypted.key", "", "--tls-key .* is encrypted with a password"),
        ("server.pem", "ed25519.key", "", "--tls-key .* is neither an RSA nor an ECDSA"),
        ("server.pem", "server.key", "server.key", "--tls-client-ca .* contains no PEM certificate"),
    ],
)
def test_certificates_that_cannot_be_used_are_refused_in_one_sentence(tls_files, cert, key, client_ca, message):
    tls_cert, tls_key, tls_client_ca = tls_files(cert, key, client_ca)
    with pytest.raises(StartError, match=message) as caught:
        load_certificates(ServerConfig([], tls_cert=tls_cert, tls_key=tls_key, tls_client_ca=tls_client_ca))
    assert "\n" not in str(caught.value)


def test_a_certificate_that_has_expired_is_a_warning(tls_files, monkeypatch):
    said = []
    monkeypatch.setattr("rill.serve.access.certificates.log.warning", lambda text, *values: said.append(text % values))
    Certificates(*tls_files("expired.pem", "expired.key"))
    (line,) = said
    assert re.search(r"--tls-cert \S+expired.pem expired on 20\d\d-\d\d-\d\d", line)


@pytest.mark.skipif(os.name != "posix", reason="no such permissions here")
def test_secrets_readable_by_all_users_are_a_warning(tls_files, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("rill.serve.access.secret_files.log.warning", lambda text, *values: said.append(text % values))
    chain, key = tls_files("server.pem", "server.key")
    tokens = secret_file(tmp_path / "tokens", ALICE)
    Certificates(chain, key)
    BearerTokens(str(tokens))
    assert said == []
    os.chmod(key, 0o644)
    tokens.chmod(0o644)
    Certificates(chain, key)
    BearerTokens(str(tokens))
    assert [line.split()[0] for line in said] == ["--tls-key", "--auth-token-file"]


@pytest.mark.parametrize(
    ("given", "lack"),
    [
        ({}, "without encryption or credentials"),
        ({"tls_cert": "x"}, "without credentials"),
        ({"auth_token_file": "x"}, "without encryption"),
        ({"tls_cert": "x", "auth_token_file": "x"}, ""),
        ({"tls_cert": "x", "tls_client_ca": "x"}, ""),
    ],
)
def test_exposure_of_a_server_beyond_loopback(given, lack):
    said = exposure_of(ServerConfig([], **given))
    assert said.startswith(lack + ":" if lack else "")
    assert bool(said) == bool(lack)


# ---- bearer tokens


@pytest.fixture(scope="module")
def token_server(tiny_folder, tmp_path_factory):
    """Two holders, with two streams each; no reflection; short texts."""
    path = secret_file(tmp_path_factory.mktemp("tokens") / "tokens", f"# who may call\n\n{ALICE}\n  {BOB}  \n")
    limits = ("--max-streams-per-client", 2, "--no-reflection", "--max-prompt", 1000, "--max-score-chars", 1000)
    with run_server(tiny_folder, "--auth-token-file", path, *limits) as running:
        yield running


def holder(server, token):
    return Client(server.target, retry_seconds=0, security=Security(token=token))


def unauthenticated_calls(channel, metadata):
    """One call of each kind, and calls of methods that do not exist."""
    stub = Security().stub(channel)
    described = reflection_pb2_grpc.ServerReflectionStub(channel)
    yield lambda: stub.ListModels(pb.ListModelsRequest(), metadata=metadata)
    yield lambda: list(stub.Generate(pb.GenerateRequest(max_chars=5), metadata=metadata))
    yield lambda: list(stub.Score(pb.ScoreRequest(text="a"), metadata=metadata))
    yield lambda: list(stub.Interact(iter([]), metadata=metadata))
    yield lambda: list(stub.Interact(iter([pb.InteractRequest()] * 9), metadata=metadata))
    yield lambda: list(described.ServerReflectionInfo(iter([]), metadata=metadata))
    yield lambda: channel.unary_unary("/rill.v1.TextGeneration/None")(b"", metadata=metadata)
    yield lambda: channel.unary_unary("/x")(b"", metadata=metadata)


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        ALICE,
        f"Basic {ALICE}",
        f"Bearer {EVE}",
        f"Bearer {ALICE[:-1]}",
        f"Bearer {ALICE} {BOB}",
    ],
)
def test_calls_without_a_token_are_refused(token_server, authorization):
    metadata = None if authorization is None else (("authorization", authorization),)
    with grpc.insecure_channel(token_server.target) as channel:
        for call in unauthenticated_calls(channel, metadata):
            assert code_of(call) is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("authorization", [f"Bearer {ALICE}", f"bearer {BOB}", f"BEARER  {ALICE}"])
def test_calls_with_a_token_are_accepted(token_server, authorization):
    metadata = (("authorization", authorization),)
    with grpc.insecure_channel(token_server.target) as channel:
        stub = Security().stub(channel)
        assert stub.ListModels(pb.ListModelsRequest(), metadata=metadata).models
        assert sum(len(m.text) for m in stub.Generate(pb.GenerateRequest(max_chars=9), metadata=metadata)) == 9
        assert code_of(lambda: list(stub.Interact(iter([]), metadata=metadata))) is grpc.StatusCode.FAILED_PRECONDITION


async def test_clients_send_their_token_with_every_call(token_server):
    with holder(token_server, ALICE) as client:
        assert client.models().models
        assert len("".join(client.generate("a", max_chars=9))) == 9
        assert list(client.score("abc"))[-1].total.chars == 3
    async with AsyncClient(token_server.target, security=Security(token=BOB)) as client:
        assert (await client.models()).models
        assert len("".join([piece async for piece in client.generate("a", max_chars=9)])) == 9
        assert [message async for message in client.score("abc")][-1].total.chars == 3


def test_health_is_open(token_server):
    with grpc.insecure_channel(token_server.target) as channel:
        stub, request = health_pb2_grpc.HealthStub(channel), health_pb2.HealthCheckRequest()
        assert stub.Check(request).status == health_pb2.HealthCheckResponse.SERVING
        watch = stub.Watch(request)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


def test_reflection_can_be_turned_off(token_server):
    with grpc.insecure_channel(token_server.target) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        call = stub.ServerReflectionInfo(iter([request]), metadata=(("authorization", f"Bearer {ALICE}"),))
        assert code_of(call) is grpc.StatusCode.UNIMPLEMENTED


def described(server, token):
    """Return how a call of reflection ends."""
    with grpc.insecure_channel(server.target) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        call = stub.ServerReflectionInfo(iter([request]), metadata=(("authorization", f"Bearer {token}"),))
        with suppress(grpc.RpcError):
            list(call)
        return call.code()


def test_tokens_are_rotated_while_a_stream_runs(tiny_folder, tmp_path):
    path = secret_file(tmp_path / "tokens", ALICE)
    with run_server(tiny_folder, "--auth-token-file", path) as running:
        with holder(running, ALICE) as alice, holder(running, BOB) as bob:
            stream = alice.stream(pb.GenerateRequest(chars_per_second=50))
            next(stream)
            assert refused(bob).code is grpc.StatusCode.UNAUTHENTICATED
            assert described(running, BOB) is grpc.StatusCode.UNAUTHENTICATED
            assert described(running, ALICE) is grpc.StatusCode.OK
            secret_file(path, BOB)

            def is_taken():
                try:
                    return bool(bob.models())
                except ServerError:
                    return False

            wait_until(is_taken)
            assert refused(alice).code is grpc.StatusCode.UNAUTHENTICATED
            assert next(stream).text
            stream.close()
        _, log = running.stop()
    for token in (ALICE, BOB):
        assert token not in log


def metadata_of(token):
    return (("user-agent", "x"), ("authorization", f"Bearer {token}"))


def test_an_invalid_token_file_changes_nothing(tmp_path, monkeypatch):
    errors, now = [], [0.0]
    monkeypatch.setattr("rill.serve.access.secret_files.log.error", lambda text, *values: errors.append(text % values))
    path = secret_file(tmp_path / "tokens", f"{ALICE}\n{BOB}\n")
    tokens = BearerTokens(str(path), clock=lambda: now[0])
    for content in ("", "# nobody\n", "short\n", f"{EVE}\nmöre-0123456789abcdef\n", None):
        path.unlink() if content is None else secret_file(path, content)
        for _ in range(3):
            now[0] += CHECK_SECONDS
            assert tokens.holder(metadata_of(ALICE))
            assert not tokens.holder(metadata_of(EVE))
        assert "the previous content stays in use" in errors[-1]
    assert len(errors) == 5
    assert not any("short" in error or "0123" in error for error in errors)
    secret_file(path, EVE)
    assert tokens.holder(metadata_of(ALICE))  # the file has not been checked again yet
    now[0] += CHECK_SECONDS
    assert not tokens.holder(metadata_of(ALICE))
    assert tokens.holder(metadata_of(EVE))
    assert len(errors) == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("", "has no token"),
        ("# a comment of sufficient length\n\n", "has no token"),
        ("a-token-of-many-01234\n" * 1001, "has 1001 tokens; the limit is 1000"),
        (f"{ALICE}\nshort\n", "line 2: a token must have at least 16 characters"),
        (f"{ALICE} {BOB}\n", "line 1: a token must not contain spaces or control characters"),
        (f"{ALICE}\x07\n", "line 1: a token must not contain"),
        ("möre-0123456789abcdef\n", "is not plain ASCII text"),
    ],
)
def test_token_files_that_cannot_be_used_are_refused_in_one_sentence(tmp_path, content, message):
    path = tmp_path / "tokens"
    if content is not None:
        secret_file(path, content)
    with pytest.raises(StartError, match=f"^--auth-token-file {path}.*{message}") as caught:
        BearerTokens(str(path))
    assert "\n" not in str(caught.value)
    assert "0123" not in str(caught.value)


def test_a_server_reports_a_bad_token_file_before_it_loads_anything(tiny_folder, tmp_path, run_command):
    done = run_command("rill.serve", tiny_folder, "--port", 0, "--auth-token-file", tmp_path / "nothing")
    assert done.returncode == 2
    assert done.stderr == f"error: --auth-token-file {tmp_path / 'nothing'} does not exist\n"


def test_a_token_file_from_windows(tmp_path):
    path = secret_file(tmp_path / "tokens", f"\ufeff{ALICE}\r\n\r\n{BOB}\r\n")
    tokens = BearerTokens(str(path))
    for token in (ALICE, BOB):
        assert tokens.holder([("authorization", f"Bearer {token}")])


def test_the_time_of_a_comparison_reveals_nothing(tmp_path, monkeypatch):
    """All tokens are compared, in constant time, whichever of them matches and whatever their lengths."""
    path = secret_file(tmp_path / "tokens", f"{ALICE}\n{BOB}\n{EVE * 50}\n")
    tokens = BearerTokens(str(path))
    compared = []

    def compare(known, given):
        compared.append((len(known), len(given)))
        return real(known, given)

    real = bearer.hmac.compare_digest
    monkeypatch.setattr(bearer.hmac, "compare_digest", compare)
    for token, is_known in ((ALICE, True), (EVE * 50, True), (ALICE[:-1], False), ("a", False), (EVE * 500, False)):
        compared.clear()
        assert bool(tokens.holder(metadata_of(token))) is is_known
        assert compared == [(32, 32)] * 3


# ---- limits


def too_many(client, **request):
    """Tell whether a stream of this client is refused because of its other streams."""
    with pytest.raises(ServerError) as caught:
        list(client.stream(pb.GenerateRequest(max_chars=5, **request)))
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.retry_seconds > 0
    return "this client already has 2 streams" in str(caught.value)


def test_streams_of_a_client_are_limited(token_server):
    with holder(token_server, ALICE) as alice, holder(token_server, ALICE) as too, holder(token_server, BOB) as bob:
        first, second = (client.stream(pb.GenerateRequest(prompt="a")) for client in (alice, too))
        next(first)
        next(second)
        assert too_many(alice)
        assert too_many(too)
        with pytest.raises(ServerError, match="this client already has 2 streams"):
            list(alice.score("abc"))
        assert alice.models().streams_running == 2
        assert len("".join(bob.generate("a", max_chars=5))) == 5
        first.close()
        wait_until(lambda: bob.models().streams_running == 1)
        assert len("".join(alice.generate("a", max_chars=5))) == 5
        second.close()
        wait_until(lambda: bob.models().streams_running == 0)


def test_a_call_is_no_longer_counted_however_it_ends(token_server):
    with holder(token_server, ALICE) as client:
        for _ in range(3):
            with pytest.raises(ServerError) as caught:
                list(client.generate("漢"))
            assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
            with pytest.raises(ServerError) as caught:
                list(client.generate("a", max_chars=0, timeout=0.05))
            assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
            wait_until(lambda: client.models().streams_running == 0)
        streams = [client.stream(pb.GenerateRequest(prompt="a")) for _ in range(2)]
        for stream in streams:
            next(stream)
        assert too_many(client)
        for stream in streams:
            stream.close()
        wait_until(lambda: client.models().streams_running == 0)
        assert len("".join(client.generate("a", max_chars=5))) == 5


def test_waiting_calls_count_and_an_address_is_a_client(tiny_folder):
    with (
        run_server(tiny_folder, "--max-streams", 1, "--max-streams-per-client", 2) as running,
        grpc.insecure_channel(running.target) as channel,
        grpc.insecure_channel(running.target, [("grpc.use_local_subchannel_pool", 1)]) as another,
        Client(running.target, retry_seconds=0) as client,
    ):
        runs = Security().stub(channel).Generate(pb.GenerateRequest(prompt="a"))
        next(runs)
        waits = Security().stub(another).Generate(pb.GenerateRequest(prompt="a", max_chars=5))
        wait_until(lambda: client.models().streams_waiting == 1)
        assert too_many(client)
        waits.cancel()
        wait_until(lambda: client.models().streams_waiting == 0)
        waits = Security().stub(another).Generate(pb.GenerateRequest(prompt="a", max_chars=5))
        runs.cancel()
        assert sum(len(message.text) for message in waits) == 5


@dataclass
class Call:
    """The part of a call that identifies the client."""

    address: str
    metadata: tuple[tuple[str, str], ...] = ()

    def peer(self):
        return self.address

    def invocation_metadata(self):
        return self.metadata


def test_clients_are_told_apart_by_address():
    clients = ClientLimits(1)
    with ExitStack() as stack:
        for peer in ("ipv4:10.0.0.1:5", "ipv4:10.0.0.2:5", "ipv6:%5B::1%5D:5", "ipv6:%5B::2%5D:5"):
            stack.enter_context(clients.admit(Call(peer)))
        for peer in ("ipv4:10.0.0.1:6", "ipv6:%5B::1%5D:6"):
            with pytest.raises(ClientLimitError), clients.admit(Call(peer)):
                pass
    assert not clients._calls


def test_the_many_addresses_of_one_holder_are_one_client(tmp_path):
    clients = ClientLimits(1, BearerTokens(str(secret_file(tmp_path / "tokens", f"{ALICE}\n{BOB}"))))
    with clients.admit(Call("ipv4:10.0.0.1:5", metadata_of(ALICE))):
        with pytest.raises(ClientLimitError), clients.admit(Call("ipv4:10.0.0.2:5", metadata_of(ALICE))):
            pass
        with clients.admit(Call("ipv4:10.0.0.1:5", metadata_of(BOB))):
            pass


def test_metadata_has_a_limit(server):
    with grpc.insecure_channel(server.target) as channel:
        stub = Security().stub(channel)
        assert stub.ListModels(pb.ListModelsRequest(), metadata=(("x", "a" * 15_000),)).models
        for size in (17_000, 200_000):
            call = stub.ListModels.future(pb.ListModelsRequest(), metadata=(("x", "a" * size),), timeout=10)
            assert code_of(call.result) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert stub.ListModels(pb.ListModelsRequest()).models


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_a_message_has_a_limit(token_server, compression):
    """A limit in bytes, before the text is parsed, and however small the compressed message is."""
    request, metadata = pb.GenerateRequest(resume_token=bytes(2_000_000)), metadata_of(ALICE)[1:]
    with grpc.insecure_channel(token_server.target) as channel:
        call = Security().stub(channel).Generate(request, metadata=metadata, compression=compression, timeout=30)
        assert code_of(call) is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_connections_have_a_limit(tiny_folder):
    own = [("grpc.use_local_subchannel_pool", 1)]
    with run_server(tiny_folder, "--max-connections", 2) as running, ExitStack() as stack:
        channels = [stack.enter_context(grpc.insecure_channel(running.target, own)) for _ in range(3)]
        first, second, third = (Security().stub(channel) for channel in channels)
        for stub in (first, second):
            assert stub.ListModels(pb.ListModelsRequest()).models
        assert code_of(third.ListModels.future(pb.ListModelsRequest(), timeout=10).result) is (
            grpc.StatusCode.UNAVAILABLE
        )
        assert first.ListModels(pb.ListModelsRequest()).models
        channels[1].close()
        assert third.ListModels(pb.ListModelsRequest(), wait_for_ready=True, timeout=20).models
