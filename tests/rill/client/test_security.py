"""How clients connect: the flags of every `rill` command that does, and where a token may not go."""

import json
import os
import subprocess
import sys

import pytest
from certificates import make_certificate
from servers import ROOT, run_server

from rill.client.errors import explain
from rill.client.security import Security
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
        done = rill("models", *flags, token=token)
        assert done.returncode == status, (flags, done.stderr)
        assert message in done.stderr
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert not token or token not in done.stderr


@pytest.mark.parametrize(
    ("target", "is_here"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("ipv4:127.0.0.1:1", True),
        ("ipv6:[::1]:1", True),
        ("dns:///localhost:1", True),
        ("unix:/run/rill.sock", True),
        ("203.0.113.7:1", False),
        ("localhost.example.com:1", False),
        ("127.0.0.1.example.com:1", False),
        ("dns:///example.com:1", False),
        ("dns://127.0.0.1/example.com:1", False),
        ("[2001:db8::1]:1", False),
        ("localhost:1,example.com:1", False),
    ],
)
def test_a_token_goes_in_plain_text_to_this_machine_only(target, is_here):
    if is_here:
        Client(target, security=Security(token=TOKEN)).close()
        return
    with pytest.raises(ValueError, match="in plain text") as caught:
        Client(target, security=Security(token=TOKEN))
    assert TOKEN not in str(caught.value)
    Client(target).close()
    Client(target, security=Security(tls=True, token=TOKEN)).close()
    Client(target, security=Security(token=TOKEN, plaintext_token=True)).close()


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


def test_a_stream_that_breaks_says_nothing_of_tls():
    assert explain("Socket closed") == "Socket closed"
