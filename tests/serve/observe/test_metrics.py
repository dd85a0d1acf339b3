"""The metrics page of real servers, compared with what their clients received."""

import shutil
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.error import URLError
from urllib.request import urlopen

import grpc
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families
from random_models import make_run, save_bundle
from servers import run_server, wait_until

from rill.serve.observe import engine_figures
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub


class Page:
    """The samples of a server's page, by name and labels."""

    def __init__(self, url):
        self.url = url
        self.read()

    def read(self):
        with urlopen(self.url, timeout=20) as response:
            families = list(text_string_to_metric_families(response.read().decode()))
        self.samples = [sample for family in families for sample in family.samples if family.name.startswith("rill_")]
        return self

    def __call__(self, name, **labels):
        """Return the sum of the samples with this name and these labels; None without any."""
        found = [s.value for s in self.samples if s.name == f"rill_{name}" and labels.items() <= s.labels.items()]
        return sum(found) if found else None

    def wait_for(self, name, value, **labels):
        """Calls are counted several times a second, perhaps while a page is being made: the next page is complete."""
        wait_until(lambda: self.read()(name, **labels) == value)
        self.read()

    def streams(self, **labels):
        self.read()
        return tuple(self(f"streams_{state}", **labels) for state in ("running", "waiting", "parked"))

    def labels(self, label):
        return {sample.labels[label] for sample in self.samples if label in sample.labels}


def page_of(server):
    """Read the address in the first log line."""
    line = server.process.stderr.readline()
    assert " INFO metrics: http://127.0.0.1:" in line
    return Page(line.split()[-1])


def refused(call):
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    return caught.value.code().name


def generate(stub, **request):
    return list(stub.Generate(pb.GenerateRequest(**request)))


@pytest.fixture(scope="module")
def folder(tiny_run, tmp_path_factory):
    """Two models, a and b."""
    folder = tmp_path_factory.mktemp("observed")
    save_bundle(tiny_run, folder / "a")
    save_bundle(make_run(seed=1), folder / "b")
    return folder


@dataclass
class Load:
    """What clients received, by model, of streams that ended by themselves; and the server's page afterwards."""

    streams: dict[str, list[list[pb.GenerateResponse]]]
    broken_off: dict[str, int]  # streams with one character each
    scored: pb.ScoreResponse.Total
    refusals: list[str]
    page: Page

    def usages(self, model):
        return [messages[-1].usage for messages in self.streams[model]]


@pytest.fixture(scope="module")
def load(folder):
    with (
        run_server(folder, "--metrics-port", 0) as server,
        grpc.insecure_channel(server.target) as channel,
        ThreadPoolExecutor(16) as pool,
    ):
        page, stub = page_of(server), TextGenerationStub(channel)
        assert page("generated_characters_total", model="a") == page("round_rows_count", model="b") == 0
        late, left = (stub.Generate(pb.GenerateRequest(chars_per_second=0.01), timeout=limit) for limit in (2, None))
        for call in (late, left):
            next(call)
        # Only then does the server know what a client that leaves has received.
        wait_until(lambda: page.read()("generated_characters_total", model="a") == 2)
        left.cancel()
        asked = [
            {"model": "ab"[i % 2], "prompt": "To be"[: i % 6], "max_chars": 50 * i + 1, "sampling": {"seed": i}}
            for i in range(16)
        ]
        texts = list(pool.map(lambda request: generate(stub, **request), asked))
        assert [sum(len(m.text) for m in messages) for messages in texts] == [each["max_chars"] for each in asked]
        stopped = generate(stub, max_chars=10**6, stop=["e", "t", "a", "o"], sampling=pb.Sampling(seed=3))
        resumed = generate(stub, resume_token=texts[1][-1].resume_token, max_chars=100, prompt="x")
        scored = list(stub.Score(pb.ScoreRequest(model="b", text="to be or not to be")))[-1].total
        token = texts[0][-1].resume_token
        refusals = [
            refused(stub.Generate(pb.GenerateRequest(model="b", resume_token=token))),
            refused(stub.Generate(pb.GenerateRequest(resume_token=token[:-1]))),
            refused(stub.Generate(pb.GenerateRequest(prompt="漢"))),
            refused(stub.Generate(pb.GenerateRequest(model="c"))),
            refused(stub.Score(pb.ScoreRequest(model="b", text="漢"))),
        ]
        assert refused(late) == "DEADLINE_EXCEEDED"
        stub.ListModels(pb.ListModelsRequest())
        accepted = len(texts) + 5  # and ListModels
        page.wait_for("calls_total", accepted + len(refusals) + 1)
        page.wait_for("call_latency_seconds_count", accepted)  # the last of a call that is written down
    return Load({"a": [*texts[0::2], stopped], "b": [*texts[1::2], resumed]}, {"a": 2, "b": 0}, scored, refusals, page)


@pytest.mark.parametrize("model", ["a", "b"])
def test_characters_are_those_that_clients_received(load, model):
    characters = sum(len(message.text) for messages in load.streams[model] for message in messages)
    page = load.page
    assert page("generated_characters_total", model=model) == characters + load.broken_off[model]
    assert page("prompt_characters_total", model=model) == sum(usage.prompt_chars for usage in load.usages(model))
    assert page("scored_characters_total", model=model) == (load.scored.chars if model == "b" else 0)


@pytest.mark.parametrize("model", ["a", "b"])
def test_latencies_are_those_in_the_usage(load, model):
    """Of cancelled streams only one thing is known: they took less than 9 s each."""
    page, usages, streams = load.page, load.usages(model), load.streams[model]

    def has(name, times, unknown, **labels):
        known = sum(times)
        assert page(f"{name}_count", model=model, **labels) == len(times) + unknown
        assert known - 1e-6 <= page(f"{name}_sum", model=model, **labels) <= known + 9 * unknown + 1e-6

    unknown = load.broken_off[model]
    has("time_to_first_character_seconds", [u.first_char_seconds for u in usages if u.generated_chars], unknown)
    has("queue_time_seconds", [u.queued_seconds for u in usages], unknown)
    assert page("call_latency_seconds_count", model=model, method="Generate") == len(streams) + unknown
    assert page("call_latency_seconds_sum", model=model, method="Generate") >= sum(u.total_seconds for u in usages)
    later = [message for messages in streams for message in messages[1:] if message.text]
    assert page("inter_character_latency_seconds_count", model=model) == len(later)
    assert page("inter_character_latency_seconds_sum", model=model) > 0


@pytest.mark.parametrize("model", ["a", "b"])
def test_rounds_are_plausible(load, model):
    page, asked = load.page, load.usages(model)
    rounds = page("round_time_seconds_count", model=model)
    assert rounds == page("round_rows_count", model=model) == page("round_steps_count", model=model)
    assert rounds <= page("round_rows_sum", model=model) <= 16 * rounds
    assert page("round_rows_bucket", model=model, le="16.0") == rounds
    # The longest stream took part in some; a round has as many steps as its longest row.
    assert page("round_steps_sum", model=model) >= max(u.generated_chars + u.prompt_chars for u in asked)
    assert page("round_time_seconds_sum", model=model) > 0


def test_every_call_is_counted_by_its_end(load):
    page = load.page
    expected = ["FAILED_PRECONDITION", "INVALID_ARGUMENT", "INVALID_ARGUMENT", "NOT_FOUND", "INVALID_ARGUMENT"]
    assert load.refusals == expected
    for model, streams in load.streams.items():
        assert page("calls_total", model=model, code="OK", method="Generate") == len(streams)
        assert page("resumes_total", model=model) == (model == "b")
    assert page("calls_total", method="ListModels", model="", code="OK") == 1
    assert page("calls_total", method="Score", model="b", code="OK") == 1
    assert page("calls_total", method="Generate", model="a", code="DEADLINE_EXCEEDED") == 1
    assert page("calls_total", method="Generate", model="a", code="CANCELLED") == 1
    for code in set(expected):
        assert page("calls_total", code=code) == expected.count(code)
    reasons = [
        ("resume_token_other_model", "b"),
        ("resume_token_invalid", ""),
        ("invalid_argument", "a"),
        ("not_found", ""),
        ("invalid_argument", "b"),
    ]
    for reason, model in reasons:
        assert page("rejections_total", reason=reason, model=model) == 1
    assert page("rejections_total") == len(reasons)
    assert page("dropped_log_lines_total") == 0


def test_an_interaction_is_one_call_with_many_texts(folder):
    with run_server(folder, "--metrics-port", 0) as server, grpc.insecure_channel(server.target) as channel:
        page, stub = page_of(server), TextGenerationStub(channel)
        actions = [
            pb.InteractRequest(open=pb.InteractRequest.Open(model="b")),
            pb.InteractRequest(feed="To be"),
            pb.InteractRequest(generate=pb.InteractRequest.Generate(max_chars=300)),
        ]
        ended = threading.Event()

        def asked():
            yield from actions
            ended.wait(20)
            yield pb.InteractRequest(generate=pb.InteractRequest.Generate(max_chars=20))

        outputs = []
        for event in stub.Interact(asked()):
            if event.HasField("output"):
                outputs.append(event.output)
            if event.output.finish_reason:
                ended.set()
        assert sum(len(output.text) for output in outputs) == 320
        assert refused(stub.Interact(iter([pb.InteractRequest(feed="a")]))) == "FAILED_PRECONDITION"
        page.wait_for("calls_total", 2)
    assert page("generated_characters_total", model="b") == 320
    assert page("prompt_characters_total", model="b") == 5
    times = sum(output.usage.first_char_seconds for output in outputs)
    assert page("time_to_first_character_seconds_count", model="b") == 2
    assert page("time_to_first_character_seconds_sum", model="b") == pytest.approx(times)
    assert page("inter_character_latency_seconds_count", model="b") == sum(bool(o.text) for o in outputs) - 2
    assert page("call_latency_seconds_count", model="b", method="Interact") == 1
    assert page("calls_total", method="Interact", model="b", code="OK") == 1
    assert page("rejections_total", reason="action_out_of_order", model="") == page("rejections_total") == 1


@pytest.mark.long
def test_gauges_agree_with_list_models(folder):
    limits = ("--max-streams", 2, "--max-waiting", 1)
    with run_server(folder, "--metrics-port", 0, *limits) as server, grpc.insecure_channel(server.target) as channel:
        page, stub = page_of(server), TextGenerationStub(channel)
        wait_until(lambda: page.read()("models") == 2)
        served = stub.ListModels(pb.ListModelsRequest()).models
        for model in served:
            about = {name: getattr(model, name) for name in ("model_id", "precision", "provider", "numerics")}
            assert page("model_info", model=model.name, **about) == 1
        request = pb.GenerateRequest(model="b", chars_per_second=0.01)
        calls = [stub.Generate(request) for _ in range(2)]
        for call in calls:
            next(call)
        calls.append(stub.Generate(request))
        wait_until(lambda: page.streams(model="b") == (2, 1, 2))
        assert page.streams(model="a") == (0, 0, 0)
        answer = stub.ListModels(pb.ListModelsRequest())
        assert (answer.streams_running, answer.streams_waiting, answer.streams_parked) == (2, 1, 2)
        assert refused(stub.Generate(request)) == "RESOURCE_EXHAUSTED"
        page.wait_for("calls_total", 1, code="RESOURCE_EXHAUSTED")
        assert page("rejections_total", model="b", reason="waiting_line_full") == page("rejections_total") == 1
        calls.pop().cancel()
        wait_until(lambda: stub.ListModels(pb.ListModelsRequest()).streams_waiting == 0)
        for call in calls:
            call.cancel()
        page.wait_for("calls_total", 3, code="CANCELLED")
        wait_until(lambda: page.streams() == (0, 0, 0))
        assert page("rejections_total") == 1  # a call that left the line was not refused
        assert page("call_latency_seconds_count") == 2


def test_calls_without_a_token_and_beyond_the_limit_are_counted(folder, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("a token of the test\n".replace(" ", "-"))
    tokens.chmod(0o600)
    arguments = ("--metrics-port", 0, "--auth-token-file", tokens, "--max-streams-per-client", 1)
    with run_server(folder, *arguments) as server, grpc.insecure_channel(server.target) as channel:
        page, stub = page_of(server), TextGenerationStub(channel)
        request, metadata = pb.GenerateRequest(chars_per_second=0.01), [("authorization", "Bearer a-token-of-the-test")]
        assert refused(stub.Generate(request)) == "UNAUTHENTICATED"
        assert refused(channel.unary_stream("/rill.v1.TextGeneration/Nothing")(b"")) == "UNAUTHENTICATED"
        first = stub.Generate(request, metadata=metadata)
        next(first)
        assert refused(stub.Generate(request, metadata=metadata)) == "RESOURCE_EXHAUSTED"
        page.wait_for("rejections_total", 1, reason="client_limit")
        first.cancel()
    assert page("calls_total", method="", model="", code="UNAUTHENTICATED") == 2
    assert page("rejections_total", model="", reason="unauthenticated") == 2
    assert page("rejections_total", model="a", reason="client_limit") == 1
    assert page("rejections_total") == 3


def test_made_up_names_do_not_become_labels(folder):
    with run_server(folder, "--metrics-port", 0) as server, grpc.insecure_channel(server.target) as channel:
        page, stub = page_of(server), TextGenerationStub(channel)
        page.wait_for("models", 2)  # from then on there are all gauges
        before = len(page.samples)
        for number in range(30):
            metadata = (("x-request-id", f"mine-{number}"),)
            asked = pb.GenerateRequest(model=f"model-{number}"), pb.ScoreRequest(model=f'"}} {number}', text="漢")
            assert refused(stub.Generate(asked[0], metadata=metadata)) == "NOT_FOUND"
            assert refused(stub.Score(asked[1], metadata=metadata)) == "NOT_FOUND"
        page.wait_for("calls_total", 60, model="", code="NOT_FOUND")
        assert page.labels("model") == {"", "a", "b"}
        assert len(page.samples) <= before + 4  # calls by two methods, and one reason


def test_drained_streams_were_not_refused(folder):
    with (
        run_server(folder, "--metrics-port", 0, "--drain-seconds", 2) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        page, stub = page_of(server), TextGenerationStub(channel)
        running = stub.Generate(pb.GenerateRequest(chars_per_second=100))
        next(running)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: stub.ListModels(pb.ListModelsRequest()).draining)
        assert refused(stub.Generate(pb.GenerateRequest(model="b"))) == "UNAVAILABLE"
        page.wait_for("calls_total", 1, code="UNAVAILABLE")
        assert page("rejections_total", reason="draining") == page("rejections_total") == 1
        assert refused(running) == "UNAVAILABLE"
        assert server.process.wait(timeout=20) == 0
        lines = [line for line in server.process.stderr.read().splitlines() if " call " in line]
    assert ["end=draining" in line for line in lines] == [True, True]
    assert ["generated_chars=" in line for line in lines] == [False, True]
    with pytest.raises(URLError):
        page.read()


@pytest.mark.long
def test_a_replaced_model_continues_its_series(folder, tmp_path):
    served = tmp_path / "served"
    shutil.copytree(folder, served)
    with run_server(served, "--metrics-port", 0) as server, grpc.insecure_channel(server.target) as channel:
        page, stub = page_of(server), TextGenerationStub(channel)

        def reload(result):
            count = page("reloads_total", result=result)
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: page.read()("reloads_total", result=result) == count + 1)

        generate(stub, model="a", max_chars=30)
        generate(stub, model="b", max_chars=20)
        running = stub.Generate(pb.GenerateRequest(model="b", chars_per_second=0.01))
        next(running)
        first_id = stub.ListModels(pb.ListModelsRequest()).models[0].model_id
        shutil.rmtree(served / "b")
        shutil.rmtree(served / "a")
        save_bundle(make_run(seed=2), served / "a")
        reload("ok")
        wait_until(lambda: page.read()("models") == 1)
        (model,) = stub.ListModels(pb.ListModelsRequest()).models
        assert model.model_id != first_id
        assert page("model_info", model="a", model_id=model.model_id) == page("model_info") == 1
        assert page.streams(model="b") == (1, 0, 1)  # its last stream continues
        running.cancel()
        wait_until(lambda: page.streams(model="b") == (None, None, None))
        generate(stub, model="a", max_chars=12)
        page.wait_for("generated_characters_total", 42, model="a")
        assert page("generated_characters_total", model="b") == 21

        (served / "a" / "decode.onnx").write_bytes(b"damaged")
        reload("partial")
        shutil.rmtree(served / "a")
        reload("failed")
        assert page("reloads_total", result="ok") == 1


def test_the_figures_of_several_processes_are_added_up():
    """Those of a process that has ended stay, without its gauges."""

    def figures(characters, running, seconds):
        registry = CollectorRegistry()
        Counter("rill_generated_characters", "", ["model"], registry=registry).labels("a").inc(characters)
        Gauge("rill_streams_running", "", ["model"], registry=registry).labels("a").set(running)
        Gauge("rill_models", "", registry=registry).set(2)
        times = Histogram("rill_queue_time_seconds", "", ["model"], buckets=(1, 2), registry=registry)
        for value in seconds:
            times.labels("a").observe(value)
        return engine_figures.own_figures(registry).encode()

    def shown(name, **labels):
        return total.get_sample_value(f"rill_{name}", labels)

    together, total = engine_figures.EngineFigures(), CollectorRegistry()
    total.register(together)
    together.update(1, figures(100, 3, [0.5]))
    together.update(2, figures(11, 1, [0.5, 1.5, 9]))
    together.update(2, figures(12, 2, [0.5, 1.5, 9]))
    assert (shown("generated_characters_total", model="a"), shown("streams_running", model="a")) == (112, 5)
    assert shown("models") == 2
    together.end(1)
    together.end(3)
    assert (shown("generated_characters_total", model="a"), shown("streams_running", model="a")) == (112, 2)
    together.update(1, figures(5, 0, []))
    assert (shown("generated_characters_total", model="a"), shown("streams_running", model="a")) == (117, 2)
    together.end(1)
    together.end(2)
    assert (shown("generated_characters_total", model="a"), shown("streams_running", model="a")) == (117, None)
    assert [shown("queue_time_seconds_bucket", model="a", le=le) for le in ("1.0", "2.0", "+Inf")] == [2, 3, 4]
    assert shown("queue_time_seconds_count", model="a") == 4
    assert shown("queue_time_seconds_sum", model="a") == 11.5
    assert shown("models") is None


def test_a_port_that_is_taken(tiny_folder, run_command):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_command("rill.serve", tiny_folder, "--port", 0, "--metrics-port", port)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: cannot serve metrics on 127.0.0.1:{port}: Address already in use\n"
    done = run_command("rill.serve", tiny_folder, "--port", 0, "--metrics-port", 0, "--metrics-host", "203.0.113.7")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: cannot serve metrics on 203.0.113.7:0: ")
