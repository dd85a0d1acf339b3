"""The log line of each call, request ids, and a stderr that is not read."""

import fcntl
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading

import grpc
import pytest
from servers import run_server, wait_until

from rill import logs
from rill.request_ids import REQUEST_ID, request_id
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub

PAIR = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)')


def of_text(line):
    """Return the fields of a line of text, which must have no other parts."""
    found = re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO call ((?:\w+=(?:\"(?:[^\"\\]|\\.)*\"|\S+) ?)+)", line
    )
    assert found, line
    return {key: json.loads(value) if value[0] == '"' else value for key, value in PAIR.findall(found[1])}


def of_json(line):
    fields = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", fields.pop("time"))
    assert (fields.pop("level"), fields.pop("message")) == ("info", "call")
    return {key: str(value) for key, value in fields.items()}


def generate(stub, metadata=(), **request):
    """Return all messages, and the id that was returned."""
    call = stub.Generate(pb.GenerateRequest(**request), metadata=metadata)
    messages = list(call)
    return messages, dict(call.trailing_metadata())[REQUEST_ID]


def refused(call):
    """Return the status, and the id that was returned with it."""
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    return caught.value.code().name, dict(caught.value.trailing_metadata())[REQUEST_ID]


@pytest.mark.parametrize(("form", "parse"), [("text", of_text), ("json", of_json)])
def test_a_line_for_each_call(tiny_folder, form, parse):
    with run_server(tiny_folder, "--log-format", form, "--drain-seconds", 1) as server:
        with grpc.insecure_channel(server.target) as channel:
            stub = TextGenerationStub(channel)
            messages, made_id = generate(stub, prompt="Secret words", max_chars=300)
            _, own_id = generate(stub, [(REQUEST_ID, 'mine "or" \\ not=yours')], stop=["e", "a", "o", "i"])
            unknown = refused(stub.Generate(pb.GenerateRequest(model="Secret model"), metadata=[(REQUEST_ID, "x-1")]))
            invalid = refused(stub.Generate(pb.GenerateRequest(prompt="Secret 漢"), metadata=[(REQUEST_ID, "x-2")]))
            list(stub.Score(pb.ScoreRequest(text="Secret text"), metadata=[(REQUEST_ID, "x-3")]))
            with pytest.raises(grpc.RpcError):
                list(stub.Generate(pb.GenerateRequest(chars_per_second=0.01), 0.5, metadata=[(REQUEST_ID, "x-4")]))
            left = stub.Generate(pb.GenerateRequest(chars_per_second=20), metadata=[(REQUEST_ID, "x-5")])
            for _ in range(3):
                next(left)
            left.cancel()
            stub.ListModels(pb.ListModelsRequest())
            wait_until(lambda: stub.ListModels(pb.ListModelsRequest()).streams_running == 0)
            drained = stub.Generate(pb.GenerateRequest(chars_per_second=9), metadata=[(REQUEST_ID, "x-6")])
            next(drained)
            server.process.send_signal(signal.SIGTERM)
            assert refused(drained) == ("UNAVAILABLE", "x-6")
        assert server.process.wait(timeout=20) == 0
        log = server.process.stderr.read()

    assert "Secret" not in log
    assert "漢" not in log
    assert re.fullmatch("[0-9a-f]{16}", made_id)
    assert own_id == 'mine_"or"_\\_not=yours'
    assert (unknown, invalid) == (("NOT_FOUND", "x-1"), ("INVALID_ARGUMENT", "x-2"))
    mark = " INFO call " if form == "text" else '"message": "call"'
    lines = {fields["id"]: fields for fields in map(parse, (line for line in log.splitlines() if mark in line))}
    ended = {name: (line["method"], line["model"], line["code"], line["end"]) for name, line in lines.items()}
    assert ended == {
        made_id: ("Generate", "tiny", "OK", "length"),
        own_id: ("Generate", "tiny", "OK", "stop"),
        "x-1": ("Generate", "", "NOT_FOUND", "not_found"),
        "x-2": ("Generate", "tiny", "INVALID_ARGUMENT", "invalid_argument"),
        "x-3": ("Score", "tiny", "OK", "complete"),
        "x-4": ("Generate", "tiny", "DEADLINE_EXCEEDED", "deadline"),
        "x-5": ("Generate", "tiny", "CANCELLED", "cancelled"),
        "x-6": ("Generate", "tiny", "UNAVAILABLE", "draining"),
    }
    usage, line = messages[-1].usage, lines[made_id]
    assert (line["prompt_chars"], line["generated_chars"]) == ("12", "300")
    for name in ("queued_seconds", "first_char_seconds"):
        assert float(line[name]) == pytest.approx(getattr(usage, name), abs=1e-6)
    assert float(line["total_seconds"]) >= usage.total_seconds - 1e-6
    assert lines["x-3"]["scored_chars"] == "11"
    assert lines["x-4"]["generated_chars"] == "1"
    assert int(lines["x-5"]["generated_chars"]) >= 2
    assert lines["x-1"].keys() == {"id", "method", "model", "code", "end", "total_seconds"}


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("abc-123/X_~!", "abc-123/X_~!"),
        ("a b", "a_b"),
        ("line\nbreak\x1b[31m\x00", "line_break_[31m_"),
        ("漢é", "__"),
        ("x" * 10_000, "x" * 128),
    ],
    ids=range(5),
)
def test_request_ids_of_clients_are_made_harmless(sent, kept):
    assert request_id([("user-agent", "y"), (REQUEST_ID, sent), (REQUEST_ID, "second")]) == kept


def test_request_ids_are_made_where_there_is_none():
    made = {request_id(metadata) for metadata in ([], [(REQUEST_ID, "")], [("x-request-id-bin", b"\xff")])}
    assert len(made) == 3
    assert all(re.fullmatch("[0-9a-f]{16}", each) for each in made)


def test_without_lines_for_calls(tiny_folder):
    with run_server(tiny_folder, "--no-access-log") as server, server.client() as client:
        "".join(client.generate("a", max_chars=5))
        status, log = server.stop()
    assert status == 0
    assert "stopped" in log
    assert "call" not in log.replace("draining: no unfinished calls", "")


def test_a_stderr_that_is_not_read_blocks_nothing(tiny_folder):
    with run_server(tiny_folder) as server, grpc.insecure_channel(server.target) as channel:
        fcntl.fcntl(server.process.stderr, fcntl.F_SETPIPE_SZ, 4096)
        stub = TextGenerationStub(channel)
        for number in range(100):  # five times as much
            messages, _ = generate(stub, max_chars=1, sampling=pb.Sampling(seed=number))
            assert messages[-1].finish_reason == pb.FINISH_REASON_LENGTH
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=20) == 0
        assert server.process.stderr.read().count(" INFO call ") < 100


@pytest.fixture
def blocked(monkeypatch):
    """Log to a full pipe with a queue of ten lines: the handler, the pipe, and whether a write has begun."""
    monkeypatch.setattr(logs, "WAITING_LINES", 10)
    writes, write = threading.Event(), os.write
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    while True:
        try:
            os.write(writing, b"." * 4095 + b"\n")
        except BlockingIOError:
            break
    os.set_blocking(writing, True)

    def observed_write(descriptor, data):
        writes.set()
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", observed_write)
    source = logs.QueueHandler(logs.TextFormatter())
    writer = logs.Writer(writing, source)
    writer.start()
    log = logging.Logger("blocked")
    log.addHandler(source)
    yield log, source, reading, writes
    writer.stop()
    assert not writer.is_alive()
    os.close(reading)
    os.close(writing)


def test_lines_that_find_the_queue_full_are_counted(blocked):
    log, source, reading, writes = blocked
    log.warning("number %d", 0)
    assert writes.wait(20)
    for number in range(1, 31):
        log.warning("number %d", number)
    assert source.queue.qsize() == 10
    assert source.dropped == 20
    text = ""
    while not text.endswith("not read\n"):
        text += os.read(reading, 65_536).decode()
    kept = [int(number) for number in re.findall(r"WARNING number (\d+)\n", text)]
    assert kept == list(range(11))
    assert text.endswith(" WARNING 20 log lines were dropped: stderr was not read\n")


def test_a_line_that_cannot_be_formatted_affects_no_other(blocked):
    log, _, reading, _ = blocked
    log.warning("%d", "no number")
    log.warning("goes on")
    text = ""
    while "goes on" not in text:
        text += os.read(reading, 65_536).decode()
    assert f"a log line from {__file__}:" in text


def test_errors_have_their_traceback():
    try:
        raise ValueError("odd")
    except ValueError:
        record = logging.getLogger("rill").makeRecord(
            "rill", logging.ERROR, __file__, 1, "it %s", ("broke",), sys.exc_info(), extra={"fields": {"n": 1}}
        )
    text = logs.TextFormatter().format(record).splitlines()
    assert text[0].endswith(" ERROR it broke n=1")
    assert text[-1] == "ValueError: odd"
    line = json.loads(logs.JsonFormatter().format(record))
    assert (line["level"], line["message"], line["n"]) == ("error", "it broke", 1)
    assert line["traceback"].endswith("ValueError: odd")


@pytest.mark.parametrize(("said", "has_traceback"), [("ExecuteBatchError raised in core", False), ("Unexpected", True)])
def test_a_client_that_leaves_while_it_is_answered_is_a_line(said, has_traceback):
    """However often that happens; other log records of gRPC keep their traceback."""
    program = f"""
import logging
from rill.logs import start_logging, stderr
writer = start_logging("text", True, stderr())
try:
    raise ValueError("gone")
except ValueError:
    logging.getLogger("grpc._cython.cygrpc").exception({said!r})
writer.stop()
"""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert f" ERROR {said}" in ended.stderr
    assert ("Traceback" in ended.stderr) is has_traceback
