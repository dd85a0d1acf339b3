"""How a gateway begins and ends: its options, its line, its ports, its certificates, signals."""

import signal
import socket
import ssl
import subprocess
import sys

import httpx
import pytest
from certificates import make_certificate
from gateways import run_gateway
from servers import ROOT, wait_until

from rill.gateway.config import config_of

NOWHERE = "127.0.0.1:1"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--port", "65536"], "--port must be from 0 to 65535, not 65536"),
        (["--drain-seconds", "nan"], "--drain-seconds must be a finite number of at least 0, not nan"),
        (["--target", "a b"], "--target 'a b' must be HOST:PORT"),
        (["--target", "127.0.0.1:8080"], "--target 127.0.0.1:8080 is the gateway's own address: give that of a server"),
        (["--host", "unix:/run/rill"], "--host unix:/run/rill is a Unix socket: the gateway listens on a port"),
        (["--http-tls-cert", "x"], "--http-tls-cert and --http-tls-key go together"),
        (["--cors", "*"], "--cors * must be the origin of a page, SCHEME://HOST or SCHEME://HOST:PORT, without a path"),
        (["--cors", "https://a/b"], "--cors https://a/b must be the origin of a page"),
        (["--allowed-host", "a:80"], "--allowed-host 'a:80' must be a host without its port"),
        (["--max-bodies", "1"], "unrecognized arguments: --max-bodies 1; did you mean --max-body?"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        config_of(arguments, "")
    assert ended.value.code == 2
    assert f"rill http: error: {sentence}" in capsys.readouterr().err


def test_help_loads_neither_grpc_nor_starlette():
    program = (
        "import sys\nfrom rill.gateway.command import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'grpc', 'starlette', 'uvicorn', 'asyncio', 'prometheus_client'} & {*sys.modules}))"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--max-connections N" in shown
    assert shown.endswith("\n[]\n")


def ended(*arguments):
    """Run a gateway that cannot start: its error."""
    command = [sys.executable, "-W", "error", "-P", "-m", "rill.gateway", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


def test_a_port_that_is_taken_is_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert ended("--port", port) == (
            f"error: cannot listen on 127.0.0.1:{port}: in use by another program: stop it, or choose another --port "
            "(0 takes a free one)\n"
        )


def test_tls_is_served_and_renewed(tmp_path):
    def served(authority):
        context = ssl.create_default_context(cadata=authority.chain.decode())
        return httpx.get(f"{gateway.url}/health", verify=context, headers={"connection": "close"})

    first, second = make_certificate("first"), make_certificate("second")
    chain, key = make_certificate("gateway", first).write(tmp_path, "gateway")
    with run_gateway(NOWHERE, "--http-tls-cert", chain, "--http-tls-key", key) as gateway:
        assert gateway.url.startswith("https://127.0.0.1:")
        assert served(first).status_code == 200
        make_certificate("gateway", second).write(tmp_path, "gateway")
        assert served(second).status_code == 200
        chain.write_text("nothing")
        assert served(second).status_code == 200
        with pytest.raises(httpx.HTTPError):
            httpx.get(gateway.url.replace("https", "http"))


def test_certificates_that_cannot_be_used_are_one_sentence(tmp_path):
    chain, _ = make_certificate("gateway").write(tmp_path, "gateway")
    _, other = make_certificate("other").write(tmp_path, "other")
    assert ended("--port", 0, "--http-tls-cert", chain, "--http-tls-key", other) == (
        f"error: --http-tls-key {other} does not belong to the certificate in --http-tls-cert {chain}\n"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_gateway(number):
    with run_gateway(NOWHERE) as gateway, httpx.Client(base_url=gateway.url) as client:
        assert client.get("/health").text == "ok\n"  # and the connection stays open
        assert client.get("/ready").status_code == 503
        gateway.process.send_signal(number)
        assert gateway.process.wait(timeout=10) == 0


def test_a_second_signal_ends_a_drain():
    with run_gateway(NOWHERE, "--drain-seconds", 60) as gateway, socket.socket() as slow:
        slow.connect(("127.0.0.1", gateway.port))
        slow.sendall(b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        slow.sendall(b"Content-Length: 9\r\n\r\n{")
        wait_until(lambda: 'running{path="/v1/score"} 1.0' in httpx.get(f"{gateway.url}/metrics").text)
        gateway.process.terminate()
        wait_until(lambda: httpx.get(f"{gateway.url}/ready").text == "draining\n")
        late = httpx.get(f"{gateway.url}/v1/models")
        assert (late.status_code, late.json()["error"]["code"]) == (503, "draining")
        assert (late.headers["retry-after"], late.headers["connection"]) == ("1", "close")
        gateway.process.terminate()
        assert gateway.process.wait(timeout=20) == 0


def test_it_ends_with_the_standard_input():
    command = [sys.executable, "-W", "error", "-P", "-m", "rill.gateway", "--port", "0", "--end-with-stdin"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout.readline().startswith(b"rill: http on ")
        process.stdin.close()
        assert process.wait(timeout=10) == 0
        wait_until(lambda: process.poll() is not None)
