"""Servers whose graph fails or whose clients vanish: what other clients get, and whether streams continue."""

import select
import signal
import socket
import threading
from contextlib import closing

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from servers import run_server, wait_until

from rill.client.errors import ServerError
from rill.client.sync import Client
from rill.serve.operate.server import SERVICE
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub

# A server whose graph fails as often as the file named by its first argument says.
FAILING = """
import pathlib, sys
from rill.serve.command import main
from rill.serve.engine.decoder import Decoder

faults, right = pathlib.Path(sys.argv.pop(1)), Decoder.run

def run(*arguments):
    left = int(faults.read_text() or 0) if faults.exists() else 0
    if left:
        faults.write_text(str(left - 1))
        raise RuntimeError("out of memory")
    return right(*arguments)

Decoder.run = run
sys.exit(main())
"""


@pytest.fixture
def failing(tiny_folder, tmp_path):
    """A server, and a function that makes its graph fail a number of times."""

    def fail(times):
        (tmp_path / "new").write_text(str(times))
        (tmp_path / "new").rename(tmp_path / "faults")

    with run_server(tmp_path / "faults", tiny_folder, program=["-c", FAILING]) as server:
        yield server, fail


def test_the_last_message_before_the_status_has_a_token(failing):
    """The token is of the position before the round: the text continues there as if nothing had happened."""
    server, fail = failing
    with grpc.insecure_channel(server.target) as channel:
        stub = TextGenerationStub(channel)
        call = stub.Generate(pb.GenerateRequest(sampling=pb.Sampling(seed=3)))
        messages = [next(call)]
        fail(1)
        with pytest.raises(grpc.RpcError) as caught:
            messages.extend(call)
        error = caught.value
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "out of memory" in error.details()
        (packed,) = Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"]).details
        info = ErrorInfo()
        assert packed.Unpack(info)
        assert info.reason == "ENGINE_ROUND_FAILED"
        text = "".join(message.text for message in messages)
        rest = stub.Generate(pb.GenerateRequest(resume_token=messages[-1].resume_token, max_chars=100))
        text += "".join(message.text for message in rest)
        with server.client() as client:
            assert text == "".join(client.generate(max_chars=len(text), seed=3))
    assert server.process.poll() is None


def test_the_client_continues(failing):
    server, fail = failing
    with server.client() as client:
        whole = "".join(client.generate("To be", max_chars=60_000, seed=4))
        got = ""
        for piece in client.generate("To be", max_chars=60_000, seed=4, resume_every=0):
            if len(got) // 20_000 < (len(got) + len(piece)) // 20_000:
                fail(1)
            got += piece
        assert got == whole


def test_a_server_that_cannot_continue_ends(failing):
    """It ends with the error and a status other than 0; all streams have been answered, new ones as well."""
    server, fail = failing
    with Client(server.target, retry_seconds=0) as client:
        pieces = client.generate(max_chars=0)
        next(pieces)
        fail(10**9)
        with pytest.raises(ServerError, match="out of memory"):
            list(pieces)
    _, errors = server.process.communicate(timeout=30)
    assert server.process.returncode == 1
    assert errors.endswith("error: the serving graph no longer runs: out of memory\n")


class Wire:
    """A connection to `target` that can be cut silently: nothing passes, nothing is closed."""

    def __init__(self, target):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"
        host, port = target.split(":")
        self._server = socket.create_connection((host, int(port)))
        self.is_cut = False
        self._thread = threading.Thread(target=self._forward)
        self._thread.start()

    def _forward(self):
        client, _ = self._listener.accept()
        with client:
            while not self.is_cut:
                for source in select.select([client, self._server], [], [], 0.05)[0]:
                    if data := source.recv(65_536):
                        (self._server if source is client else client).sendall(data)

    def close(self):
        self.is_cut = True
        self._thread.join()
        self._server.close()
        self._listener.close()


@pytest.mark.parametrize("busy", [True, pytest.param(False, marks=pytest.mark.long)], ids=["reading", "idle"])
def test_a_client_that_vanishes_is_noticed(tiny_folder, busy):
    """No FIN, no answer: its slot is freed all the same."""
    with (
        run_server(tiny_folder, "--keepalive-seconds", 1) as server,
        server.client() as other,
        closing(Wire(server.target)) as wire,
        grpc.insecure_channel(wire.target) as channel,
    ):
        pace = 0 if busy else 0.1
        call = TextGenerationStub(channel).Generate(pb.GenerateRequest(chars_per_second=pace))
        next(call)
        assert other.models().streams_running == 1
        wire.is_cut = True
        wait_until(lambda: other.models().streams_running == 0)
        call.cancel()


def test_many_calls_at_once_are_refused_with_a_reason(tiny_folder):
    """Every call beyond the limit gets its status, however many arrive: by itself, gRPC would cancel some."""
    with (
        run_server(tiny_folder, "--max-streams", 1, "--max-waiting", 0) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        stub = TextGenerationStub(channel)
        held = stub.Generate(pb.GenerateRequest(chars_per_second=0.01))
        next(held)
        calls = [stub.Generate(pb.GenerateRequest(prompt="a" * 100)) for _ in range(500)]
        assert {call.code() for call in calls} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        held.cancel()


def test_a_full_server_refuses_calls_without_reading_them(tiny_folder):
    """A full server answers without reading a request; with a free slot, it reads them again."""
    with (
        run_server(tiny_folder, "--max-streams", 1, "--max-waiting", 0, "--drain-seconds", 3) as server,
        server.client() as client,
        grpc.insecure_channel(server.target) as channel,
    ):
        stub = TextGenerationStub(channel)
        held = stub.Generate(pb.GenerateRequest(chars_per_second=0.01))
        next(held)
        never = threading.Event()
        no_message = channel.unary_stream(f"/{SERVICE.full_name}/Generate")
        refused = [
            no_message(b"\xff"),
            stub.Score(pb.ScoreRequest(text="a")),
            stub.Interact(iter(never.wait, True), timeout=30),
        ]
        for call in refused:
            with pytest.raises(grpc.RpcError) as caught:
                next(call)
            error = ServerError.from_rpc(caught.value)
            assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "all 1 streams are in use and 0 calls are waiting" in str(error)
            assert error.retry_seconds == 1
            assert len(dict(caught.value.trailing_metadata())["x-request-id"]) == 16
        never.set()
        assert client.models().streams_running == 1  # calls other than streams are answered
        held.cancel()
        wait_until(lambda: client.models().streams_running == 0)
        assert no_message(b"\xff").code() is grpc.StatusCode.INVALID_ARGUMENT
        assert len("".join(client.generate(max_chars=3))) == 3
        held = stub.Generate(pb.GenerateRequest(chars_per_second=0.01))
        next(held)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: client.models().draining)
        assert stub.Generate(pb.GenerateRequest()).code() is grpc.StatusCode.UNAVAILABLE  # not "try again here"


# A reader that takes nothing stops the server's writes after 64 KB in transit, not after megabytes.
NARROW = [("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1)]


@pytest.mark.long
def test_a_reader_that_stops_is_ended(tiny_folder):
    """Its slot is freed, and it gets the status when it reads again; the text so far is right."""
    with (
        run_server(tiny_folder, "--stall-seconds", 1) as server,
        server.client() as other,
        grpc.insecure_channel(server.target, NARROW) as channel,
    ):
        stub = TextGenerationStub(channel)
        stalled = stub.Generate(pb.GenerateRequest(sampling=pb.Sampling(seed=1)))
        scored = stub.Score(pb.ScoreRequest(text="a" * 200_000))
        talk = stub.Interact(iter([open_action(), generate_action()]))
        slow = stub.Generate(pb.GenerateRequest(chars_per_second=5, max_chars=20))
        wait_until(lambda: other.models().streams_running >= 3)
        assert len("".join(message.text for message in slow)) == 20  # a paced stream does not count as stalled
        wait_until(lambda: other.models().streams_running == 0)
        text = ""
        for call in (stalled, scored, talk):
            messages = []
            with pytest.raises(grpc.RpcError) as caught:
                messages.extend(call)
            text += "".join(message.text for message in messages if call is stalled)
            assert caught.value.code() is grpc.StatusCode.ABORTED
            assert "nothing was read for 1 seconds" in caught.value.details()
        assert text == "".join(other.generate(max_chars=len(text), seed=1))


def test_a_conversation_that_is_not_opened_is_ended(tiny_folder):
    with run_server(tiny_folder, "--stall-seconds", 1) as server, grpc.insecure_channel(server.target) as channel:
        never = threading.Event()
        silent = TextGenerationStub(channel).Interact(iter(never.wait, True), timeout=30)
        with pytest.raises(grpc.RpcError) as caught:
            next(silent)
        assert caught.value.code() is grpc.StatusCode.ABORTED
        assert "nothing was opened for 1 seconds" in caught.value.details()
        never.set()


def open_action():
    return pb.InteractRequest(open=pb.InteractRequest.Open())


def generate_action():
    return pb.InteractRequest(generate=pb.InteractRequest.Generate())


@pytest.mark.long
def test_a_client_that_was_away_continues(tiny_folder, monkeypatch):
    """No text is lost although the server has ended the stream."""
    monkeypatch.setattr("rill.client.sync.CHANNEL_OPTIONS", NARROW)
    with run_server(tiny_folder, "--stall-seconds", 1) as server, server.client() as client, server.client() as other:
        whole = "".join(other.generate(max_chars=200_000, seed=2))
        pieces = client.generate(max_chars=200_000, seed=2)
        text = next(pieces)
        wait_until(lambda: other.models().streams_running == 0)
        assert text + "".join(pieces) == whole
