"""The server as a process: how it starts, when it refuses to, how it stops; and the `rill` command."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from random_models import save_bundle
from servers import ROOT, run_server, wait_until

from rill.client.errors import ServerError
from rill.client.sync import Client
from rill.serve.engine.devices import gpu_count
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub


def test_refuses_to_start_in_one_sentence(tmp_path, tiny_folder, tiny_run, run_command):
    damaged = tmp_path / "damaged"
    save_bundle(tiny_run, damaged)
    (damaged / "decode.onnx").write_bytes(b"not a graph")
    empty = tmp_path / "empty"
    empty.mkdir()
    copy = tmp_path / "copies" / "tiny"
    save_bundle(tiny_run, copy)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        cases = [
            ([tmp_path / "nothing"], "no such folder"),
            ([empty], "has no manifest.json"),
            ([damaged], "decode.onnx is damaged"),
            ([tiny_folder, copy], "two bundles are named 'tiny'"),
            ([tiny_folder, "--device", "tpu"], "--device 'tpu' is not auto, cpu, cuda or cuda:N"),
            ([tiny_folder, "--device", "cuda:x"], "is not auto, cpu, cuda or cuda:N"),
            ([tiny_folder, "--port", taken.getsockname()[1]], "cannot listen on 127.0.0.1"),
            ([tiny_folder, "--host", "203.0.113.7", "--port", "0"], "cannot listen on 203.0.113.7"),
            ([tiny_folder, "--max-streams", "0"], "--max-streams must be from 1"),
            ([tiny_folder, "--port", "70000"], "--port must be from 0 to 65535"),
            ([tiny_folder, "--max-prompt", "300000000"], "--max-prompt must be from 1"),
            ([tiny_folder, "--drain-seconds", "nan"], "--drain-seconds must be a finite number"),
        ]
        with ThreadPoolExecutor(2) as pool:  # each takes half a second
            ends = pool.map(lambda case: run_command("rill.serve", *case[0]), cases)
        for done, (arguments, message) in zip(ends, cases, strict=True):
            assert done.returncode == 2, arguments
            assert message in done.stderr
            assert "Traceback" not in done.stderr
            assert done.stdout == ""


def test_cuda_without_a_gpu_is_one_clear_error(tiny_folder, run_command):
    if gpu_count():
        pytest.skip("there is a GPU")
    done = run_command("rill.serve", tiny_folder, "--device", "cuda")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if " WARNING " not in line]
    assert line.startswith("error: --device cuda")


def test_auto_without_a_gpu_is_quiet(tiny_folder):
    with run_server(tiny_folder) as running:
        status, log = running.stop()
    assert status == 0
    assert re.fullmatch(r"(\S+ \S+ INFO .*\n)*", log)


def test_a_warning_beyond_loopback(tiny_folder, run_command):
    done = run_command("rill.serve", tiny_folder, "--host", "203.0.113.7", "--port", "0")
    assert "WARNING listening on 203.0.113.7 without encryption or credentials" in done.stderr


def test_memory_at_rest(tiny_folder):
    with run_server(tiny_folder) as running:
        assert psutil.Process(running.process.pid).memory_info().rss < 200e6


def test_a_drained_server_lets_streams_finish_and_refuses_new_ones(tiny_folder):
    with (
        run_server(tiny_folder, "--drain-seconds", 30) as running,
        Client(running.target, retry_seconds=0) as client,
    ):
        pieces = client.stream(pb.GenerateRequest(prompt="a", max_chars=60, chars_per_second=30))
        text = next(pieces).text
        with grpc.insecure_channel(running.target) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            running.process.send_signal(signal.SIGTERM)
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            with pytest.raises(ServerError) as caught:
                list(client.generate("b", max_chars=5))
            assert caught.value.code is grpc.StatusCode.UNAVAILABLE
            assert client.models().draining
            watch.cancel()
        messages = list(pieces)
        text += "".join(message.text for message in messages)
        assert len(text) == 60
        assert messages[-1].finish_reason == pb.FINISH_REASON_LENGTH
        assert running.process.wait(timeout=20) == 0


def test_streams_that_do_not_finish_in_time_end_as_draining(tiny_folder):
    with run_server(tiny_folder, "--drain-seconds", 2) as running, grpc.insecure_channel(running.target) as channel:
        pieces = TextGenerationStub(channel).Generate(pb.GenerateRequest(prompt="a", chars_per_second=100))
        messages = [next(pieces)]
        started = time.monotonic()
        running.process.send_signal(signal.SIGINT)
        with pytest.raises(grpc.RpcError) as caught:
            messages.extend(pieces)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert messages[-1].resume_token
        assert messages[-1].finish_reason == pb.FINISH_REASON_DRAINING
        assert messages[-1].usage.generated_chars == sum(len(m.text) for m in messages)
        assert running.process.wait(timeout=20) == 0
        assert time.monotonic() - started < 10


def test_generated_text_is_sent_before_the_end(tiny_folder):
    """Complete in the engine, not yet sent: a reader that resumes in time gets all of it."""
    count = 16_000 * 8
    with run_server(tiny_folder, "--drain-seconds", 20) as running:
        # By default, gRPC's client reads megabytes ahead of its application.
        with grpc.insecure_channel(running.target, [("grpc.http2.bdp_probe", 0)]) as channel:
            stub = TextGenerationStub(channel)
            calls = [
                stub.Generate(pb.GenerateRequest(max_chars=count // 8, sampling=pb.Sampling(seed=s))) for s in range(8)
            ]
            got = [len(next(call).text) for call in calls]
            with running.client() as client:
                wait_until(lambda: client.models().streams_running == 0)
            running.process.send_signal(signal.SIGTERM)
            time.sleep(2.5)
            got += [len(message.text) for call in calls for message in call]
        assert sum(got) == count
        assert running.process.wait(timeout=20) == 0


def test_ipv6(tiny_folder):
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
    with run_server(tiny_folder, "--host", "::1") as running, running.client() as client:
        assert len("".join(client.generate("a", max_chars=5))) == 5


def test_waiting_calls_are_refused_at_a_drain(tiny_folder):
    with (
        run_server(tiny_folder, "--max-streams", 1, "--drain-seconds", 2) as running,
        Client(running.target, retry_seconds=0) as client,
    ):
        first = client.generate("a", max_chars=0)
        next(first)
        errors = []

        def wait():
            try:
                list(client.generate("b", max_chars=0))
            except ServerError as error:
                errors.append(error.code)

        waiter = threading.Thread(target=wait)
        waiter.start()
        wait_until(lambda: client.models().streams_waiting == 1)
        running.process.send_signal(signal.SIGTERM)
        waiter.join(timeout=20)
        assert errors == [grpc.StatusCode.UNAVAILABLE]
        first.close()
        assert running.process.wait(timeout=20) == 0


def test_a_second_signal_ends_at_once(tiny_folder):
    with run_server(tiny_folder, "--drain-seconds", 60) as running, running.client() as client:
        pieces = client.generate("a", max_chars=0)
        next(pieces)
        running.process.send_signal(signal.SIGTERM)
        wait_until(lambda: client.models().draining)
        started = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(timeout=20) == 0
        assert time.monotonic() - started < 10
        pieces.close()


def test_rill_generate(server, run_command):
    done = run_command("rill", "generate", "To", "--target", server.target, "--max-chars", 80, "--seed", 7, "--stats")
    assert done.returncode == 0, done.stderr
    with server.client() as client:
        assert done.stdout == "".join(client.generate("To", max_chars=80, seed=7))
    assert re.search(
        r"80 characters \(seed 7\): the first [\d.]+ ms after the call, then [\d,]+ characters/s", done.stderr
    )


def test_rill_generate_json(server, run_command):
    arguments = (
        "--seed",
        0,
        "--temperature",
        0.5,
        "--top-k",
        9,
        "--top-p",
        0.9,
        "--min-p",
        0.01,
        "--logit-bias",
        "e=-inf",
    )
    done = run_command("rill", "generate", "--target", server.target, "--max-chars", 300, "--json", *arguments)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(len(line["text"]) for line in lines) == 300
    assert not any("e" in line["text"] for line in lines)
    assert lines[0]["seed"] == 0
    assert lines[-1]["finish_reason"] == "LENGTH"
    assert lines[-1]["usage"]["generated_chars"] == 300


def test_rill_models(server, run_command):
    done = run_command("rill", "models", "--target", server.target)
    assert done.stdout.startswith("tiny: gru 1 x 32, 57 symbols, fp32, CPUExecutionProvider, 128 bytes a stream, ")
    described = json.loads(run_command("rill", "models", "--target", server.target, "--json").stdout)
    assert described["models"][0]["name"] == "tiny"


def test_rill_reports_errors(server, run_command):
    done = run_command("rill", "generate", "漢", "--target", server.target)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: prompt: character '漢' (U+6F22) at position 0")
    done = run_command("rill", "generate", "--target", "127.0.0.1:1")
    assert done.returncode == 1
    assert "UNAVAILABLE" in done.stderr
    done = run_command("rill", "generate", "--seed", "-1", "--target", server.target)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    done = run_command("rill", "generate", "--logit-bias", "xy", "--target", server.target)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_rill_reports_that_it_cannot_write(server):
    for rill in (f"generate --max-chars 9 --target {server.target}", f"models --target {server.target}"):
        command = f"{sys.executable} -W error -m rill {rill} > /dev/full"
        done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (1, "error: cannot write: No space left on device\n")


def test_rill_in_a_pipe_that_closes(server):
    rill = f"{sys.executable} -W error -m rill"
    command = f"{rill} generate --target {server.target} --max-chars 0 --seed 1 | head -c 2000"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert len(done.stdout.encode()) == 2000
    assert done.stderr == ""
    with server.client() as client:
        wait_until(lambda: client.models().streams_running == 0)


def test_rill_ends_on_ctrl_c(server):
    with subprocess.Popen(
        [sys.executable, "-m", "rill", "generate", "--target", server.target, "--max-chars", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # As on a terminal: a shell that runs the tests in the background ignores SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  # it takes no lock
    ) as process:
        try:
            assert process.stdout
            process.stdout.read(100)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
        assert process.returncode == 130
        assert b"Traceback" not in errors


def test_a_profile_has_the_time_of_each_stage(tiny_folder, tmp_path):
    report = tmp_path / "profile.json"
    with run_server(tiny_folder, "--profile", report) as running:
        with running.client() as client:
            texts = ["".join(client.generate("To be", max_chars=700, seed=seed)) for seed in range(3)]
            scores = list(client.score("To be", as_prompt=True, top_logprobs=2))
            pieces = client.generate("a", max_chars=0, seed=1)
            next(pieces)
            pieces.close()  # a cancelled write must not disturb it
        running.stop()
    assert {len(text) for text in texts} == {700}
    found = json.loads(report.read_text())
    assert found["characters"] >= 2100
    assert found["messages"] >= 3 + len(scores) - 1  # the total is not timed
    assert found["steps"] >= found["rounds"] >= 3
    engine = [found["seconds"][stage] for stage in ("schedule", "assemble", "run", "harvest", "hand_over", "idle")]
    loop = [found["seconds"][stage] for stage in ("decode", "serialise", "write")]
    assert min(engine + loop) > 0
    assert sum(engine) < found["elapsed_seconds"]
    assert sum(loop) < found["elapsed_seconds"]


def test_a_profile_that_cannot_be_written_is_refused_at_once(tiny_folder, tmp_path, run_command):
    done = run_command("rill.serve", tiny_folder, "--profile", tmp_path / "nowhere" / "profile.json")
    assert done.returncode == 2
    assert "--profile" in done.stderr
