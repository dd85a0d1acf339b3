"""What every request passes: heads and bodies within limits, hosts and origins, headers of answers, the log."""

import json
import re
import socket
import time
from contextlib import ExitStack

import httpx
import pytest
from gateways import run_gateway

HOST = b"Host: localhost\r\n"
JSON = HOST + b"Content-Type: application/json\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\n" + JSON
LIMITS = ("--read-seconds", 0.5, "--max-body", 2000, "--max-connections", 8, "--cors", "https://app.example:8443")
NOWHERE = "127.0.0.1:1"


@pytest.fixture(scope="module")
def narrow():
    """A gateway with narrow limits, without a server."""
    with run_gateway(NOWHERE, *LIMITS, "--allowed-host", "Rill.Example", "--retry-seconds", 0) as running:
        yield running


def exchanged(gateway, sent):
    """What a gateway answers to these bytes, until it closes the connection: status and headers, body."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as connection:
        connection.sendall(sent)
        received = b""
        while chunk := connection.recv(65_536):
            received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    return head.decode(), body.decode()


@pytest.mark.parametrize(
    ("sent", "status", "sentence"),
    [
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400, "this is not a valid HTTP/1.1 request: illegal request line"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "the gateway speaks HTTP/1.1"),
        (b"GET /health HTTP/1.1\r\n\r\n", 400, "Missing mandatory Host: header"),
        (b"GET /health HTTP/1.1\r\n" + 2 * HOST + b"\r\n", 400, "Found multiple Host: headers"),
        (b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421, "the gateway is not reached as 'evil.example'"),
        (b"GET http://evil.example/health HTTP/1.1\r\n" + HOST + b"\r\n", 421, "is not reached as 'evil.example'"),
        (b"GET /health HTTP/1.1\r\nHost: localhost@evil\r\n\r\n", 421, "the gateway is not reached as"),
        (b"GET /health HTTP/1.1\r\n" + HOST + b"X: " + 40_000 * b"a" + b"\r\n\r\n", 431, "more than 32768 bytes"),
        (b"GET /health HTTP/1.1\r\n" + HOST + b"X: " + 40_000 * b"a", 431, "more than 32768 bytes"),
        (b"GET /" + 40_000 * b"a" + b" HTTP/1.1\r\n" + HOST + b"\r\n", 431, "more than 32768 bytes"),
        (b"GET /health HTTP/1.1\r\n" + HOST + 200 * b"X: a\r\n" + b"\r\n", 431, "more than 100 headers"),
        (b"GET /health HTTP/1.1\r\nHo", 408, "no complete request arrived within 0.5 s"),
        (POST + b"Content-Length: 9\r\n\r\n{", 408, "the request's body did not arrive within 0.5 s"),
        (POST + b"Content-Length: 5000\r\n\r\n" + 5000 * b"a", 413, "the request's body has more than 2000 bytes"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nfff\r\n" + 4095 * b"a" + b"\r\n", 413, "more than 2000 bytes"),
        (POST + b"Expect: 100-continue\r\nContent-Length: 5000\r\n\r\n", 413, "more than 2000 bytes"),
        (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "not both"),
        (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\naaaaaa", 400, "conflicting Content-Length headers"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "illegal chunk header"),
    ],
)
def test_what_is_not_proper_http_is_refused(narrow, sent, status, sentence):
    head, body = exchanged(narrow, sent)
    assert head.startswith(f"HTTP/1.1 {status} ")
    assert sentence in json.loads(body)["error"]["message"]
    assert httpx.get(f"{narrow.url}/health").status_code == 200


@pytest.mark.parametrize(
    "target", [b"http://localhost/health", b"HTTP://127.0.0.1:1/health?a=/", b"https://[::1]/health"]
)
def test_a_target_may_be_a_whole_address(narrow, target):
    """As clients write it that think of the gateway as a proxy."""
    head, body = exchanged(narrow, b"GET " + target + b" HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
    assert (head[:15], body) == ("HTTP/1.1 200 OK", "ok\n")


def test_requests_in_a_row_are_answered_in_a_row(narrow):
    get = b"GET /health HTTP/1.1\r\n" + HOST
    _, rest = exchanged(narrow, 2 * (get + b"\r\n") + get + b"Connection: close\r\n\r\n")
    assert rest.count("HTTP/1.1 200 OK") == 2
    assert rest.count("ok\n") == 3
    head, body = exchanged(narrow, b"GET /health HTTP/1.0\r\n\r\n" + b"")  # as a proxy's probe: without a host
    assert (head[:15], body) == ("HTTP/1.1 200 OK", "ok\n")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 503),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "https://app.example:8443"}, 503),
        ({"origin": "https://APP.example:8443"}, 503),
        ({"origin": "https://app.example"}, 403),
        ({"origin": "http://localhost:1", "host": "localhost:1"}, 503),
        ({"origin": "http://localhost", "host": "localhost:1"}, 403),
        ({"origin": "https://rill.example", "host": "rill.example"}, 503),  # a proxy in front has ended TLS
        ({"origin": "http://localhost.evil.example", "host": "localhost"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-encoding": "gzip"}, 415),
        ({"content-encoding": "identity"}, 503),
        ({"authorization": f"Bearer {'a' * 12 * 1024}"}, 503),
        ({"authorization": f"Bearer {'a' * 13 * 1024}"}, 401),
        ({"host": "127.0.0.1.nip.example"}, 421),
    ],
    ids=lambda value: str(value)[:60],
)
def test_pages_of_others_reach_nothing(narrow, headers, status):
    headers = {"content-type": "application/json", **headers}
    answer = httpx.post(f"{narrow.url}/v1/completions", content=b'{"prompt": "a"}', headers=headers)
    assert answer.status_code == status, answer.text
    shared = headers.get("origin", "").lower() == "https://app.example:8443"
    assert ("access-control-allow-origin" in answer.headers) is shared


def test_a_preflight_is_for_shared_origins(narrow):
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, content-type"}
    shared, other = (
        httpx.options(f"{narrow.url}/v1/completions", headers={"origin": origin, **asked})
        for origin in ("https://app.example:8443", "https://evil.example")
    )
    assert shared.status_code == 204
    assert shared.headers["access-control-allow-origin"] == "https://app.example:8443"
    assert shared.headers["access-control-allow-headers"] == "authorization, content-type"
    assert "access-control-allow-credentials" not in shared.headers
    assert (other.status_code, other.headers["allow"]) == (405, "POST")
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/v1/modelz", 404, "there is no /v1/modelz; did you mean /v1/models?"),
        ("GET", "/v1/models/", 404, "there is no /v1/models/; did you mean /v1/models?"),
        ("GET", "/shared/%2e%2e/__init__.py", 404, "there is no /shared/../__init__.py"),
        ("GET", "/v1/completions", 405, "/v1/completions does not take GET: use POST"),
        ("GET", "/v1/interact", 426, "/v1/interact is a WebSocket"),
        ("HEAD", "/health", 200, None),
    ],
)
def test_wrong_paths_and_methods_are_named(narrow, method, path, status, message):
    answer = httpx.request(method, f"{narrow.url}{path}")
    assert answer.status_code == status
    if message:
        assert answer.json()["error"]["message"] == message


def test_answers_have_the_id_of_their_request(narrow):
    for path in ("/health", "/nothing", "/v1/models", "/shared/style.css"):
        answer = httpx.get(f"{narrow.url}{path}", headers={"x-request-id": "a b\xe9".encode()})
        assert answer.headers["x-request-id"] == "a_b__"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["referrer-policy"] == "no-referrer"
    made = {httpx.get(f"{narrow.url}/health").headers["x-request-id"] for _ in range(2)}
    assert all(re.fullmatch("[0-9a-f]{16}", one) for one in made)
    assert len(made) == 2


def test_idle_connections_starve_nobody(narrow):
    with ExitStack() as stack:
        for _ in range(40):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", narrow.port)))
            idle.sendall(b"GET /health HTTP/1.1\r\nX")
        assert httpx.get(f"{narrow.url}/health").status_code == 200


def test_files_of_the_page_are_kept_by_browsers_until_they_change(narrow):
    style = httpx.get(f"{narrow.url}/shared/style.css")
    assert style.headers["content-type"] == "text/css; charset=utf-8"
    assert style.headers["cache-control"] == "no-cache"
    again = httpx.get(f"{narrow.url}/shared/style.css", headers={"if-none-match": style.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_it_is_ready_when_a_server_is(gateway, narrow):
    assert (httpx.get(f"{gateway.url}/ready").status_code, httpx.get(f"{gateway.url}/ready").text) == (200, "ready\n")
    answer = httpx.get(f"{narrow.url}/ready")
    assert answer.status_code == 503
    assert "127.0.0.1:1" in answer.text
    assert "version" in httpx.get(f"{narrow.url}/version").json()


def test_requests_are_counted_and_logged(server):
    secret = "correct-horse-battery-staple"
    with run_gateway(server.target) as gateway:
        headers = {"x-request-id": "one", "authorization": f"Bearer {secret}"}
        answer = httpx.post(f"{gateway.url}/v1/completions", json={"prompt": "the ", "seed": 7}, headers=headers)
        assert answer.status_code == 200
        httpx.get(f"{gateway.url}/nothing?{secret}")
        figures = httpx.get(f"{gateway.url}/metrics").text
        assert 'rill_http_requests_total{method="POST",path="/v1/completions",status="200"} 1.0' in figures
        assert 'rill_http_requests_total{method="GET",path="other",status="404"} 1.0' in figures
        gateway.process.terminate()
        log = gateway.process.communicate(timeout=20)[1]
    line = next(line for line in log.splitlines() if "/v1/completions" in line)
    assert " INFO request id=one method=POST path=/v1/completions status=200 " in line
    assert f" sent_bytes={len(answer.content)} " in line
    assert secret not in log
    assert time.strftime("%Y-%m-%d") in log
