"""How clients connect: the flags of every `rill` command that does, and where a token may not go."""

import json
import os
import socket
import subprocess
import sys
import threading
from argparse import Namespace
from contextlib import contextmanager, suppress

import pytest
from certificates import make_certificate
from servers import ROOT, run_server

from rill.client.aio import AsyncClient
from rill.client.errors import ServerError
from rill.client.security import Security
from rill.client.security_files import security_of
from rill.client.sync import Client

TOKEN = "a-token-for-the-tests-0123"


@pytest.fixture(scope="module")
def secured(tiny_folder, tmp_path_factory):
    """A server that wants TLS, a client's certificate and a token, and the flags that satisfy it."""
    folder = tmp_path_factory.mktemp("secured")
    authority = make_certificate("authority")
    ca, _ = authority.write(folder, "authority")
    chain, key = make_certificate("server", authority).write(folder, "server")
    own, own_key = make_certificate("client", authority).write(folder, "client")
    tokens = folder / "tokens"
    tokens.touch(0o600)
    tokens.write_text(f"# of the tests\n\n{TOKEN}\n")
    arguments = ("--tls-cert", chain, "--tls-key", key, "--tls-client-ca", ca, "--auth-token-file", tokens)
    with run_server(tiny_folder, *arguments) as running:
        flags = ["--target", running.target, "--tls-ca", ca, "--tls-cert", own, "--tls-key", own_key]
        running.flags, running.folder, running.token_file = list(map(str, flags)), folder, str(tokens)
        yield running


def rill(*arguments, token=""):
    """The command, with a token in its environment and a line to read."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "rill", *map(str, arguments)],
        cwd=ROOT,
        input="a\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**{name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}, "RILL_TOKEN": token},
    )


def test_all_commands_that_connect(secured, tmp_path):
    prompts, text = tmp_path / "prompts.jsonl", tmp_path / "text"
    prompts.write_text('{"prompt": "a"}\n')
    text.write_text("abc")
    for command in (
        ["models"],
        ["generate", "a", "--max-chars", 20],
        ["chat", "--max-chars", 20],
        ["score", text],
        ["batch", prompts, "--out", tmp_path / "texts.jsonl", "--max-chars", 20],
        ["verify", "--chars", 40, "--streams", 2],
    ):
        done = rill(*command, *secured.flags, token=TOKEN)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert len(json.loads((tmp_path / "texts.jsonl").read_text())["text"]) == 20
    done = rill("generate", "a", "--max-chars", 20, "--token-file", secured.token_file, *secured.flags, token="another")
    assert (done.returncode, len(done.stdout)) == (0, 20), done.stderr


def test_what_is_wrong_is_said_in_one_line(secured):
    anonymous, other = secured.flags[:4], str(secured.folder / "server.pem")
    for flags, token, status, message in [
        (secured.flags, "", 1, "this server needs a bearer token"),
        (secured.flags, "wrong-0123456789abcdef", 1, "invalid bearer token"),
        (anonymous, TOKEN, 1, "it may require TLS or a client certificate that it trusts"),
        (anonymous[:2], TOKEN, 1, "it may require TLS"),
        ([*anonymous[:2], "--tls"], TOKEN, 1, "is not signed by a trusted authority"),
        ([*secured.flags[:-1], other], TOKEN, 1, "the certificates or the key given to this client are damaged"),
        (secured.flags[:-2], TOKEN, 2, "--tls-cert and --tls-key go together"),
        ([*anonymous, "--token-file", "nowhere"], "", 2, "--token-file nowhere cannot be read"),
        ([*anonymous, "--token-file", os.devnull], "", 2, "it has 0"),
        ([*anonymous, "--token-file", __file__], "", 2, "must hold one token"),
        ([*anonymous[:2], "--tls-ca", "nowhere"], "", 2, "--tls-ca nowhere cannot be read"),
        (["--target", "203.0.113.7:1"], TOKEN, 2, "the bearer token would go to 203.0.113.7:1 in plain text"),
    ]:
        done = rill("models", *flags, "--retry-seconds", "0", token=token)
        assert done.returncode == status, (flags, done.stderr)
        assert message in done.stderr
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert not token or token not in done.stderr


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_token_file_as_editors_on_windows_save_it(encoding, tmp_path):
    path = tmp_path / "token"
    path.write_bytes(f"# mine\r\n\r\n{TOKEN}\r\n".encode(encoding))
    options = Namespace(tls=False, tls_ca="", tls_cert="", tls_key="", tls_server_name="", plaintext_token=False)
    options.token_file = str(path)
    assert security_of(options).token == TOKEN


@pytest.mark.parametrize("target", ["127.0.0.1:1", "[::1]:1", "dns:///localhost:1", "unix:/run/rill.sock"])
def test_a_token_goes_to_this_machine_in_plain_text(target):
    Client(target, security=Security(token=TOKEN)).close()


@pytest.mark.parametrize("target", ["203.0.113.7:1", "http://203.0.113.7:1", "localhost:1,example.com:1"])
def test_a_token_goes_to_other_machines_with_tls_only(target):
    with pytest.raises(ValueError, match="in plain text") as caught:
        Client(target, security=Security(token=TOKEN))
    assert TOKEN not in str(caught.value)
    Client(target).close()
    Client(target, security=Security(tls=True, token=TOKEN)).close()
    Client(target, security=Security(token=TOKEN, plaintext_token=True)).close()
    Client("https://203.0.113.7", security=Security(token=TOKEN)).close()


@contextmanager
def http_proxy():
    """A proxy that answers nothing: yields its URL, and the list of what it was asked."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            with suppress(OSError):
                while True:
                    with listener.accept()[0] as connection:
                        asked.append(connection.recv(65_536))

        threading.Thread(target=answer, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
        listener.shutdown(socket.SHUT_RDWR)


PROXIES = ("http_proxy", "https_proxy", "grpc_proxy")


@pytest.mark.parametrize("variable", PROXIES)
async def test_nothing_for_this_machine_goes_through_a_proxy(server, variable, monkeypatch):
    with http_proxy() as (url, asked):
        monkeypatch.setenv(variable, url)
        security = Security(token=TOKEN)
        for target in (server.target, f"localhost:{server.port}", f"ipv4:{server.target}", f"0.0.0.0:{server.port}"):
            with Client(target, security=security) as client:
                assert client.models(timeout=20).models
            async with AsyncClient(target, security=security) as client:
                assert (await client.models(timeout=20)).models
        assert not asked


@pytest.mark.parametrize("variable", PROXIES)
def test_no_token_goes_to_another_machine_through_a_proxy_in_plain_text(variable, monkeypatch):
    """An address of documentation (RFC 5737), which nothing answers."""
    with http_proxy() as (url, asked):
        monkeypatch.setenv(variable, url)
        security = Security(token=TOKEN, plaintext_token=True)
        with Client("203.0.113.7:1", retry_seconds=0, security=security) as client, pytest.raises(ServerError):
            client.models(timeout=0.3)
        assert not asked
        with Client("203.0.113.7:1", retry_seconds=0) as client, pytest.raises(ServerError) as caught:
            client.models(timeout=20)
        assert asked[0].startswith(b"CONNECT 203.0.113.7:1 ")
        assert f"the environment variable {variable} names" in str(caught.value)


def test_commands_ignore_proxies_for_this_machine(secured, tiny_folder, monkeypatch):
    with http_proxy() as (url, asked):
        for variable in PROXIES:
            monkeypatch.setenv(variable, url)
        assert rill("generate", "a", "--max-chars", 20, *secured.flags, token=TOKEN).returncode == 0
        assert rill("generate", "a", "--max-chars", 20, "--bundle", tiny_folder).returncode == 0
        assert not asked  # not even by ONNX Runtime, for its telemetry


def test_the_name_in_the_certificate_can_be_given(secured, tiny_folder, tmp_path):
    authority = make_certificate("authority")
    ca, _ = authority.write(tmp_path, "authority")
    chain, key = make_certificate("server", authority, "text.example.com").write(tmp_path, "server")
    with run_server(tiny_folder, "--tls-cert", chain, "--tls-key", key) as running:
        done = rill("models", "--target", running.target, "--tls-ca", ca)
        assert "the server's certificate is for another host: --tls-server-name" in done.stderr
        done = rill("models", "--target", running.target, "--tls-ca", ca, "--tls-server-name", "text.example.com")
        assert done.returncode == 0, done.stderr
        trusted = Security(root_certificates=authority.chain, server_name="text.example.com")
        with Client(f"https://{running.target}", security=trusted) as client:
            assert client.models().models


def test_a_name_of_a_server_is_a_host_name():
    with pytest.raises(ValueError, match=r"server_name \(--tls-server-name\) must be a host name"):
        Security(server_name="a b")


def test_secrets_are_not_shown():
    shown = repr(Security(token=TOKEN, certificate=(b"a key", b"a chain")))
    assert TOKEN not in shown
    assert "a key" not in shown


@pytest.mark.parametrize("token", ["with space", "line\nline", "möre"])
def test_tokens_that_no_call_can_carry_are_refused(token):
    with pytest.raises(ValueError, match="a bearer token must be printable ASCII without spaces"):
        Security(token=token)


def test_no_authorities_at_all_are_not_plain_text():
    with pytest.raises(ValueError, match="has no certificate of an authority"):
        Security(root_certificates=b"")


def test_a_client_for_another_token_shares_the_connections(tiny_folder, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{TOKEN}-one\n{TOKEN}-two\n")
    with run_server(tiny_folder, "--auth-token-file", tokens) as server, Client(server.target) as client:
        with pytest.raises(ServerError, match="bearer token"):
            client.models()
        assert client.with_token(f"{TOKEN}-two").models().models
        with pytest.raises(ServerError, match="invalid bearer token"):
            client.with_token(f"{TOKEN}-three").models()
    with Client("10.0.0.5:50051") as client, pytest.raises(ValueError, match="plain text"):
        client.with_token("one")
    allowed = Security(plaintext_token=True)
    with Client("10.0.0.5:50051", security=allowed) as client:
        client.with_token("one")
