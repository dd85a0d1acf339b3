"""Several processes on one port (`--engines`): for clients, tokens and signals they are one server."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from urllib.request import urlopen

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from random_models import save_bundle
from servers import ROOT, run_server, wait_until

from rill.client.errors import ServerError
from rill.client.requests import generate_request
from rill.client.sync import Client
from rill.serve.command import main
from rill.serve.config import ServerConfig
from rill.serve.errors import BrokenEngineError, StartError
from rill.serve.observe.engine_figures import EngineFigures
from rill.serve.operate import restarts, supervisor
from rill.serve.operate import server as server_module
from rill.serve.operate.ports import reserved
from rill.serve.operate.server import SERVICE
from rill.serve.operate.supervisor import Worker, serve_together
from rill.v1 import rill_pb2 as pb

TWO = ("--engines", 2)


def workers_of(running):
    return psutil.Process(running.process.pid).children()


def connected(process):
    """Tell whether a client is connected to a process."""
    return any(connection.status == psutil.CONN_ESTABLISHED for connection in process.net_connections("tcp"))


@contextmanager
def clients_of_both(running, **parameters):
    """Two clients that are connected to different processes."""
    with ExitStack() as stack:
        first = stack.enter_context(Client(running.target, **parameters))
        first.models()
        for _ in range(50):
            second = stack.enter_context(Client(running.target, **parameters))
            second.models()
            if all(map(connected, workers_of(running))):
                break
            time.sleep(0.05)  # a process that replaces another may not listen yet
        else:
            raise AssertionError("all connections went to one process")
        yield first, second


@pytest.fixture(scope="module")
def pair(tiny_folder):
    """Two processes for tests that do not change them."""
    with run_server(tiny_folder, *TWO) as running:
        yield running


def text_of(messages):
    return "".join(message.text for message in messages)


def test_texts_are_the_same_from_each_process_and_from_a_single_one(pair, server):
    parameters = [{"seed": seed, "temperature": 0.5 + seed / 4, "top_k": 10 * seed} for seed in range(4)]
    with server.client() as single, clients_of_both(pair) as both:
        texts = [
            ["".join(client.generate("To be", max_chars=300, **given)) for given in parameters]
            for client in (single, *both)
        ]
    assert texts[0] == texts[1] == texts[2]
    assert len(set(texts[0])) == len(parameters)


def test_health_and_reflection_of_all_processes(pair):
    own = [("grpc.use_local_subchannel_pool", 1)]
    with ExitStack() as stack:
        channels = [stack.enter_context(grpc.insecure_channel(pair.target, own)) for _ in range(12)]
        for channel in channels:
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=SERVICE.full_name))
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            (answer,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
            assert SERVICE.full_name in [service.name for service in answer.list_services_response.service]
        assert all(map(connected, workers_of(pair)))


def test_a_token_of_one_process_is_valid_at_the_other(pair):
    with clients_of_both(pair) as (one, other):
        begun = list(one.stream(generate_request("a", max_chars=50, seed=5)))
        rest = other.generate(resume_token=begun[-1].resume_token, max_chars=50)
        assert text_of(begun) + "".join(rest) == "".join(other.generate("a", max_chars=100, seed=5))


def test_a_signal_to_all_processes_drains_once(tiny_folder):
    """As init systems and terminals send it; a process that took it for a second one would end at once."""
    with (
        run_server(tiny_folder, *TWO, "--drain-seconds", 30) as running,
        clients_of_both(running, retry_seconds=0) as clients,
    ):
        processes = workers_of(running)
        request = generate_request("a", max_chars=40, chars_per_second=40)
        streams = [client.stream(request) for client in clients]
        texts = [next(stream).text for stream in streams]
        for process in (*processes, running.process):
            process.send_signal(signal.SIGTERM)
        wait_until(lambda: all(client.models().draining for client in clients))
        with pytest.raises(ServerError) as caught:
            list(clients[0].generate("b", max_chars=5))
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert [len(text + text_of(stream)) for text, stream in zip(texts, streams, strict=True)] == [40, 40]
        _, log = running.process.communicate(timeout=20)
        assert running.process.returncode == 0
        assert not any(process.is_running() for process in processes)
        assert all(f"INFO draining: 1 unfinished call engine={number}\n" in log for number in (1, 2))


def test_streams_that_do_not_finish_in_time_end_as_draining(tiny_folder):
    with (
        run_server(tiny_folder, *TWO, "--drain-seconds", 1.2) as running,
        clients_of_both(running, retry_seconds=0) as clients,
    ):
        streams = [client.stream(generate_request("a", max_chars=0, chars_per_second=100)) for client in clients]
        heard = [[next(stream)] for stream in streams]
        running.process.send_signal(signal.SIGINT)
        for messages, stream in zip(heard, streams, strict=True):
            with pytest.raises(ServerError):
                messages.extend(stream)
            assert messages[-1].finish_reason == pb.FINISH_REASON_DRAINING
            assert messages[-1].resume_token
        assert running.process.wait(timeout=20) == 0


@pytest.mark.long
def test_a_second_signal_ends_at_once(tiny_folder):
    with run_server(tiny_folder, *TWO, "--drain-seconds", 100) as running, clients_of_both(running) as clients:
        processes = workers_of(running)
        streams = [client.generate("a", max_chars=0) for client in clients]
        for stream in streams:
            next(stream)
        running.process.send_signal(signal.SIGTERM)
        wait_until(lambda: all(client.models().draining for client in clients))
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(timeout=20) == 0
        assert not any(process.is_running() for process in processes)


def test_hangup_reaches_all(tiny_folder, tiny_run, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "tiny")
    with run_server(tmp_path, *TWO) as running, clients_of_both(running) as clients:
        save_bundle(tiny_run, tmp_path / "tiny-2")
        running.process.send_signal(signal.SIGHUP)
        wait_until(lambda: all(len(client.models().models) == 2 for client in clients))
        assert running.stop()[0] == 0


def test_a_killed_process_is_replaced_and_its_streams_continue(tiny_folder):
    with run_server(tiny_folder, *TWO, "--drain-seconds", 1) as running, running.client() as client:
        messages = client.stream(generate_request("To be", max_chars=3000, chars_per_second=2000, seed=3))
        text = next(messages).text
        (busy,) = filter(connected, workers_of(running))
        busy.kill()
        text += text_of(messages)
        assert text == "".join(client.generate("To be", max_chars=3000, seed=3))
        wait_until(lambda: len(workers_of(running)) == 2 and busy not in workers_of(running))
        with clients_of_both(running) as both:
            assert {"".join(client.generate("To be", max_chars=3000, seed=3)) for client in both} == {text}
        status, log = running.stop()
        assert status == 0
        assert log.count("ended with status -9; restarting it") == 1


def test_one_page_of_metrics(tiny_folder):
    arguments = (tiny_folder, *TWO, "--metrics-port", 0, "--drain-seconds", 1)
    with run_server(*arguments) as running, clients_of_both(running) as clients:
        line = running.process.stderr.readline()
        assert " INFO metrics: http://" in line

        def figure(name):
            with urlopen(line.split()[-1], timeout=20) as response:
                samples = [sample.split() for sample in response.read().decode().splitlines()]
            return sum(float(value) for series, value, *_ in samples if series.startswith(f"rill_{name}{{"))

        for client, count in zip(clients, (300, 50), strict=True):
            assert len("".join(client.generate("a", max_chars=count))) == count
        wait_until(lambda: figure("generated_characters_total") == 350)
        streams = [client.generate("a", max_chars=0, chars_per_second=1) for client in clients]
        for stream in streams:
            next(stream)
        wait_until(lambda: figure("streams_running") == 2)
        process = workers_of(running)[0]
        made = figure("generated_characters_total")
        process.kill()
        wait_until(lambda: figure("streams_running") == 1)
        assert figure("generated_characters_total") >= made
        assert running.stop()[0] == 0


@pytest.mark.long
def test_another_program_s_folder_of_metrics_does_not_matter(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "nowhere"))
    with run_server(tiny_folder, *TWO, "--metrics-port", 0) as running:
        address = running.process.stderr.readline().split()[-1]
        wait_until(lambda: b"rill_models 1.0" in urlopen(address, timeout=20).read())


def test_all_killed_and_none_can_be_started(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "tiny")
    with run_server(tmp_path / "tiny", *TWO) as running:
        shutil.rmtree(tmp_path / "tiny")
        for process in workers_of(running):
            process.kill()
        _, log = running.process.communicate(timeout=20)
        assert running.process.returncode == 1
        assert f"error: no engine is left: {tmp_path}/tiny is not a bundle: no such folder; make one with " in log


@pytest.mark.long
def test_all_killed_and_none_can_say_why(tiny_folder, tmp_path, monkeypatch):
    """As after an upgrade in place: what would start them is broken."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    with run_server(tiny_folder, *TWO) as running:
        (tmp_path / "prometheus_client.py").write_text("raise ImportError('half of an upgrade')")
        for process in workers_of(running):
            process.kill()
        _, log = running.process.communicate(timeout=30)
        assert running.process.returncode == 1
        assert "error: no engine is left: it cannot be loaded: ImportError: half of an upgrade\n" in log
        assert "Traceback" not in log


class CrashingWorker(Worker):
    """Listens, and ends at once, as often as it is started."""

    starts = 0

    async def _start(self):
        self.starts += 1
        self._process = await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", "import sys; sys.exit(7)")
        self._reading = asyncio.create_task(asyncio.sleep(0))
        return "rill: listening"


async def test_crashes_without_end_have_one(monkeypatch):
    monkeypatch.setattr(restarts, "FIRST_PAUSE", 0)
    worker = CrashingWorker(1, ServerConfig(), [], EngineFigures())
    await worker.start()
    with pytest.raises(BrokenEngineError, match="no engine is left: engine 1 ended with status 7"):
        await supervisor._keep_alive(worker, [worker])
    assert worker.starts == supervisor.MOST_FAILURES


async def test_crashes_of_one_engine_do_not_end_the_others(monkeypatch):
    monkeypatch.setattr(restarts, "FIRST_PAUSE", 0)
    worker, healthy = (CrashingWorker(number, ServerConfig(), [], EngineFigures()) for number in (1, 2))
    healthy.serving = True
    await worker.start()
    keeping = asyncio.create_task(supervisor._keep_alive(worker, [worker, healthy]))
    while worker.starts < 2 * supervisor.MOST_FAILURES:
        await asyncio.sleep(0.01)
    assert not keeping.done()
    healthy.serving, healthy.is_lost = False, True
    with pytest.raises(BrokenEngineError):
        await keeping


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_they_load_ends_at_once(tiny_folder, number, status):
    command = [sys.executable, "-W", "error", "-m", "rill.serve", str(tiny_folder), "--port", "0", *map(str, TWO)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe) as process:
        parent = psutil.Process(process.pid)
        wait_until(lambda: len(parent.children()) == 2)
        processes = parent.children()
        process.send_signal(number)
        assert process.communicate(timeout=20) == (b"", b"")
        assert process.returncode == status
        assert not any(other.is_running() for other in processes)


def test_a_killed_parent_leaves_no_process_behind(tiny_folder):
    with run_server(tiny_folder, *TWO, "--drain-seconds", 1.2) as running:
        processes = workers_of(running)
        with Client(running.target, retry_seconds=0) as client:
            messages = client.stream(generate_request("a", max_chars=0, chars_per_second=100))
            heard = [next(messages)]
            running.process.kill()
            with pytest.raises(ServerError):
                heard.extend(messages)
        assert heard[-1].finish_reason == pb.FINISH_REASON_DRAINING
        gone, alive = psutil.wait_procs(processes, timeout=20)
        assert len(gone) == 2
        assert not alive


def test_refuses_to_start_in_one_sentence(tmp_path, tiny_run, tiny_folder, pair, run_command):
    damaged = tmp_path / "damaged"
    save_bundle(tiny_run, damaged)
    (damaged / "decode.onnx").write_bytes(b"not a graph")
    taken = pair.port
    for arguments, message in [
        ([damaged, *TWO], "decode.onnx is damaged"),
        ([tiny_folder, *TWO, "--port", taken], "cannot listen on 127.0.0.1"),
        ([tiny_folder, "--port", taken], "cannot listen on 127.0.0.1"),
        ([tiny_folder, *TWO, "--profile", tmp_path / "profile"], "--profile is for a single process"),
    ]:
        done = run_command("rill.serve", *arguments)
        assert done.returncode == 2, arguments
        assert done.stderr.count(message) == 1
        assert "Traceback" not in done.stderr
        assert done.stdout == ""


async def test_refuses_before_it_starts_a_process(tmp_path):
    config = ServerConfig(bundles=["bundle"], engines=2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for given, message in [
            ({"port": taken.getsockname()[1]}, "cannot listen on 127.0.0.1"),
            ({"host": "203.0.113.7", "port": 0}, "cannot listen on 203.0.113.7"),
            ({"host": 80 * "a"}, "cannot listen on aaa"),
            ({"resume_key_file": [str(tmp_path / "none")]}, "--resume-key-file"),
        ]:
            with pytest.raises(StartError, match=message):
                await serve_together(replace(config, **given))


def test_a_reserved_port_is_only_for_processes_that_share_it():
    config = ServerConfig(bundles=[], engines=2, port=0)
    with reserved(config) as port:
        with socket.socket() as shared:
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            shared.bind(("127.0.0.1", port))
        with socket.socket() as alone:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="in use"):
                alone.bind(("127.0.0.1", port))
        with pytest.raises(StartError), reserved(replace(config, port=port)):
            pass
    with reserved(replace(config, host="localhost", port=port)) as again:
        assert again == port


def test_elsewhere_than_on_linux(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SystemExit) as caught:
        main(["bundle", "--engines", "2"])
    assert caught.value.code == 2
    assert "--engines needs Linux" in capsys.readouterr().err


async def test_not_on_a_gpu(monkeypatch):
    monkeypatch.setattr(server_module, "choose_device", lambda device: ("CUDAExecutionProvider", 0))
    with pytest.raises(StartError, match="--engines 2 is for CPUs"):
        server_module.model_maker(ServerConfig(bundles=["bundle"], engines=2), print)
