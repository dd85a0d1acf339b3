"""`rill batch` with real servers: the same file whichever generates it, and whatever happens."""

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager

import grpc
import grpc.aio
import pytest
from google.protobuf.any_pb2 import Any
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from random_models import make_run, save_bundle
from servers import ROOT, run_server, wait_until

from rill.cli.batch.input import check, read
from rill.cli.batch.output import BatchOutput, Fingerprint
from rill.cli.batch.runner import Batch, GeneratedText, RefusedError, Servers
from rill.cli.main import main
from rill.client.errors import ServerError
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationServicer, add_TextGenerationServicer_to_server

Code = grpc.StatusCode
DEFAULTS = {"max_chars": 9, "seed": 0}


def write_prompts(path, count, **every):
    """Write prompts of all kinds; every tenth has a character that the tiny model does not know."""
    draw = random.Random(count)
    kinds = [{}, {"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.8, "min_p": 0.01}, {"seed": 3}, {"stop": ["e", "t"]},
             {"stop": ["a"], "include_stop": True}, {"logit_bias": {"e": "-inf", "x": 2}}, {"id": "é"}]  # fmt: skip
    lines = [
        {"prompt": "漢" if number % 10 == 9 else "".join(draw.choices("abcdef ", k=number % 7)),
         **every, **kinds[number % len(kinds)]}
        for number in range(count)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def prompts(tmp_path):
    return write_prompts(tmp_path / "prompts.jsonl", 120)


def lines_of(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


# ---- the whole command


@pytest.mark.long
def test_private_and_running_servers_write_the_same_file(prompts, tmp_path, server, tiny_folder, capsys):
    outs = [tmp_path / name for name in ("local", "local-3", "served", "crowded")]
    rill = ["batch", str(prompts), "--max-chars", "60", "--out"]
    assert main([*rill, str(outs[0]), "--bundle", str(tiny_folder)]) == 1
    assert main([*rill, str(outs[1]), "--bundle", str(tiny_folder), "--streams", "3"]) == 1
    assert main([*rill, str(outs[2]), "--target", server.target]) == 1
    with run_server(tiny_folder, "--max-streams", 2, "--max-waiting", 3) as small:
        assert main([*rill, str(outs[3]), "--target", small.target, "--streams", "12"]) == 1
    texts = [out.read_bytes() for out in outs]
    assert texts.count(texts[0]) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"prompts.jsonl", *(out.name for out in outs)}
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"{outs[0]}: 108 texts, 12 refused (their lines say why); ")
    lines = lines_of(outs[0])
    assert [line["line"] for line in lines] == list(range(1, 121))
    assert (lines[8]["id"], lines[0]["id"], lines[4]["seed"]) == ("é", 1, 3)
    assert lines[9]["error"].startswith("prompt: character '漢' (U+6F22) at position 0 is not in")
    assert "text" not in lines[9]
    made = [line for line in lines if "text" in line]
    assert all(line["chars"] == len(line["text"]) for line in made)
    assert {line["finish_reason"] for line in made} == {"LENGTH", "STOP"}
    assert all((line["finish_reason"] == "LENGTH") == (line["chars"] == 60) for line in made)
    with server.client() as client:
        assert "".join(client.generate("", max_chars=60, seed=lines[0]["seed"])) == lines[0]["text"]


def test_flags_are_the_defaults(tmp_path, server, tiny_folder):
    def texts(name, line, *flags):
        (tmp_path / name).write_text(json.dumps({"prompt": "ab", **line}) + "\n")
        out = tmp_path / f"{name}.out"
        assert main(["batch", str(tmp_path / name), "--out", str(out), "--target", server.target, *flags]) == 0
        return [(line["text"], line["finish_reason"]) for line in lines_of(out)]

    line = {"max_chars": 30, "temperature": 0.9, "top_k": 20, "top_p": 0.95, "min_p": 0.001, "stop": ["q", "zz"],
            "include_stop": True, "logit_bias": {"a": "-inf", "b": 1.5}}  # fmt: skip
    flags = ["--max-chars", "30", "--temperature", "0.9", "--top-k", "20", "--top-p", "0.95", "--min-p", "0.001"]
    flags += ["--stop", "q", "--stop", "zz", "--include-stop", "--logit-bias", "a=-inf", "--logit-bias", "b=1.5"]
    first = texts("one", line)
    assert texts("two", {}, *flags) == first
    assert texts("three", line, "--temperature", "0", "--max-chars", "5", "--stop", "e") == first
    assert texts("four", line, "--seed", "1") != first


def test_a_complete_output_is_left_as_it_is(tmp_path, server, capsys):
    prompts, out = tmp_path / "prompts", tmp_path / "out"
    prompts.write_text('{"prompt": "a"}\n' * 3)
    rill = ["batch", str(prompts), "--out", str(out), "--target", server.target, "--max-chars", "5"]
    assert main(rill) == 0
    before = out.read_bytes(), out.stat().st_mtime_ns
    capsys.readouterr()
    assert main(rill) == 0
    assert capsys.readouterr().err == f"{out} is complete: 3 texts\n"
    assert (out.read_bytes(), out.stat().st_mtime_ns) == before
    assert main([*rill, "--temperature", "0.5"]) == 2
    assert capsys.readouterr().err == (
        f"error: {out} has texts of other parameters; remove it, or choose another --out\n"
    )
    prompts.write_text('{"prompt": "a"}\n' * 4)
    assert main(rill) == 2
    assert "has texts of another input" in capsys.readouterr().err
    assert (out.read_bytes(), out.stat().st_mtime_ns) == before


def test_an_empty_input_has_an_empty_output(tmp_path, server):
    (tmp_path / "prompts").touch()
    assert main(["batch", str(tmp_path / "prompts"), "--out", str(tmp_path / "out"), "--target", server.target]) == 0
    assert (tmp_path / "out").read_bytes() == b""


def test_an_event_loop_without_signal_handlers_as_on_windows(tmp_path, server, monkeypatch):
    def refuse(*_):
        raise NotImplementedError

    monkeypatch.setattr(asyncio.SelectorEventLoop, "add_signal_handler", refuse)
    prompts = write_prompts(tmp_path / "prompts", 3)
    assert main(["batch", str(prompts), "--out", str(tmp_path / "out"), "--target", server.target]) == 0
    assert len(lines_of(tmp_path / "out")) == 3


def test_errors_are_reported_before_any_text(tmp_path, server, tiny_folder, capsys):
    prompts, out = tmp_path / "prompts", tmp_path / "out"
    prompts.write_text('{"prompt": "a"}\n{"prompt": "b", "top_k": 1.5}\n')
    good = tmp_path / "good"
    good.write_text('{"prompt": "a"}\n')
    tiny, target = ["--bundle", str(tiny_folder)], ["--target", server.target]
    cases = [
        ([prompts, *target], 2, f'error: {prompts}, line 2: "top_k" must be a whole number, not 1.5\n'),
        ([tmp_path, *target], 2, "is not a file; the input is read twice"),
        ([good, *target, "--top-p", "0"], 2, "error: --top-p must be a number above 0 and up to 1, not 0.0\n"),
        ([good, *target, "--max-chars", "0"], 2, "error: --max-chars must be from 1 to"),
        ([good, *target, "--seed", "-1"], 2, "error: --seed must be from 0 to"),
        ([good, *target, "--logit-bias", "e=nan"], 2, 'error: --logit-bias "e": must be a number'),
        ([good, *target, "--model", "other"], 2, "error: there is no model 'other'; the server has tiny\n"),
        ([good, *target, *tiny], 2, "error: give either a bundle or --target"),
        ([good, *tiny, "--model", "tiny"], 2, "error: --model goes with --target"),
        ([good, *target, "--device", "cpu"], 2, "error: --device goes with a bundle"),
        ([good, *tiny, "--device", "tpu"], 2, "error: --device 'tpu' is not"),
        ([good, "--bundle", tmp_path], 2, "has no manifest.json"),
        ([good, "--target", "127.0.0.1:1", "--retry-seconds", 0], 1, "(UNAVAILABLE)\n"),
        ([good, "--target", "a,,b"], 2, "error: target must be HOST:PORT or several"),
        ([good, *target, "--streams", "0"], 2, "must be from 1 to 1,000,000, not 0"),
        ([good, *target, "--out", tmp_path / "none" / "out"], 2, f"there is no folder {tmp_path / 'none'}"),
        ([good, *target, "--out", tmp_path], 2, f"cannot write {tmp_path}: it is a folder"),
        ([good, *target, "--out", good], 2, f"error: {good}, line 1 was not written by rill batch; remove it"),
    ]
    for arguments, status, message in cases:
        try:
            found = main(["batch", "--out", str(out), *map(str, arguments)])
        except SystemExit as usage:
            found = usage.code
        said = capsys.readouterr()
        assert (found, said.out) == (status, ""), arguments
        assert message in said.err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["good", "prompts"]
    assert good.read_text() == '{"prompt": "a"}\n'


# ---- interruptions

MANY, LONG = 120, 600


@pytest.fixture(scope="module")
def many(tmp_path_factory, tiny_folder):
    """Prompts of texts that take seconds, and the output of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("many")
    prompts = write_prompts(folder / "prompts", MANY)
    rill = ["batch", str(prompts), "--out", str(folder / "out"), "--max-chars", str(LONG)]
    assert main([*rill, "--bundle", str(tiny_folder)]) == 1
    return prompts, (folder / "out").read_bytes()


# `rill`, which ends by kill -9 after so many lines, in the middle of the next one.
DOOMED = """
import os, signal, sys
from rill.cli.main import main
from rill.cli.batch.output import BatchOutput

lines, torn = map(int, sys.argv[1:3])
add = BatchOutput.add

def add_or_die(self, line, fields):
    global lines
    if lines == 0:
        self._file.write(b'{"line": 1, "run": "'[:torn])
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    lines -= 1
    add(self, line, fields)

BatchOutput.add = add_or_die
sys.exit(main(sys.argv[3:]))
"""


@contextmanager
def running(prompts, out, *arguments, program=("-m", "rill")):
    """Run the command in a process of its own."""
    rill = ["batch", prompts, "--out", out, "--max-chars", LONG, "--streams", 8, *arguments]
    with subprocess.Popen(
        [sys.executable, "-W", "error", *map(str, [*program, *rill])],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        # As on a terminal: where the tests run in the background, a shell has SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  # it takes no lock
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def killed(prompts, out, lines, torn, *arguments):
    """Run the command until it kills itself, after `lines` lines and `torn` bytes of the next; return its messages."""
    with running(prompts, out, *arguments, program=("-c", DOOMED, lines, torn)) as process:
        said = process.communicate(timeout=60)[1]
        assert process.returncode == -signal.SIGKILL
    return said


def count(out):
    part = out.with_name(f"{out.name}.part")
    return part.read_bytes().count(b"\n") if part.exists() else MANY if out.exists() else 0


@pytest.mark.parametrize("where", ["served", pytest.param("local", marks=pytest.mark.long)])
def test_kills_lose_and_double_nothing(many, tmp_path, server, tiny_folder, where):
    prompts, expected = many
    out, part = tmp_path / "out", tmp_path / "out.part"
    source = ["--target", server.target] if where == "served" else ["--bundle", tiny_folder]
    assert killed(prompts, out, 0, 9, *source) == ""
    assert killed(prompts, out, 17, 0, *source) == f"{part}: removed an incomplete last line\n"
    assert killed(prompts, out, 50, 20, *source) == f"{part}: continuing after 17 of {MANY} lines\n"
    with running(prompts, out, *source) as process:
        said = process.communicate(timeout=60)[1].splitlines()
        assert process.returncode == 1, said
    assert said[:-1] == [
        f"{part}: removed an incomplete last line", f"{part}: continuing after 67 of {MANY} lines"
    ]  # fmt: skip
    assert out.read_bytes() == expected
    assert list(tmp_path.iterdir()) == [out]


@pytest.fixture
def slow(tmp_path):
    """Prompts of 20 short texts, and then of 8 that take long."""
    lines = [{"prompt": "a", "max_chars": count} for count in [20] * 20 + [1_000_000] * 8]
    (tmp_path / "slow").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "slow"


def test_an_interrupt_says_how_to_continue(slow, tmp_path, server):
    out = tmp_path / "out"
    here = f"{out}.part has 20 of 28 lines; the same command continues from it\n"
    with running(slow, out, "--target", server.target) as process:
        wait_until(lambda: count(out) == 20)
        process.send_signal(signal.SIGINT)
        assert (process.communicate(timeout=20)[1], process.returncode) == (here, 130)
    with running(slow, out, "--target", server.target) as process:
        assert process.stderr.readline() == f"{out}.part: continuing after 20 of 28 lines\n"
        process.send_signal(signal.SIGTERM)
        assert (process.communicate(timeout=20)[1], process.returncode) == (here, 143)
    with server.client() as client:
        wait_until(lambda: client.models().streams_running == 0)


def test_servers_that_drain_and_die_are_survived(many, tmp_path, tiny_folder):
    prompts, expected = many
    out = tmp_path / "out"
    with (
        run_server(tiny_folder, "--drain-seconds", 1) as first,
        run_server(tiny_folder) as second,
        running(prompts, out, "--target", f"{first.target},{second.target}") as process,
    ):
        wait_until(lambda: count(out) > 10)
        first.process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 1
    assert out.read_bytes() == expected


def test_a_server_that_is_restarted_is_waited_for(many, tmp_path, tiny_folder):
    prompts, expected = many
    out = tmp_path / "out"
    with run_server(tiny_folder) as first:
        port = first.port
        with running(prompts, out, "--target", first.target) as process:
            wait_until(lambda: count(out) > 10)
            first.process.kill()
            first.process.wait()
            command = [sys.executable, "-m", "rill.serve", str(tiny_folder), "--port", port]
            with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as again:
                try:
                    assert process.wait(timeout=60) == 1
                finally:
                    again.kill()
    assert out.read_bytes() == expected


def test_a_lost_server_keeps_what_is_complete(slow, tmp_path, tiny_folder):
    out = tmp_path / "out"
    with (
        run_server(tiny_folder) as only,
        running(slow, out, "--target", only.target, "--retry-seconds", 0.5) as process,
    ):
        wait_until(lambda: count(out) == 20)
        only.process.kill()
        said = process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == 1
    assert said[0] == f"{out}.part has 20 of 28 lines; the same command continues from it"
    # The first text to give up may have had no symbol yet.
    assert said[1].startswith(("error: the stream broke after ", "error: no server listens at "))
    assert said[1].endswith("(UNAVAILABLE)")


def test_another_model_does_not_continue(many, tmp_path, server, capsys):
    save_bundle(make_run(seed=5), tmp_path / "tiny")
    prompts, _ = many
    out = tmp_path / "out"
    killed(prompts, out, 5, 0, "--target", server.target)
    rill = ["batch", str(prompts), "--out", str(out), "--max-chars", str(LONG), "--bundle", str(tmp_path / "tiny")]
    assert main(rill) == 2
    assert capsys.readouterr().err == (
        f"error: {out}.part has texts of another model; remove it, or choose another --out\n"
    )


def test_a_model_that_is_replaced_during_a_run_is_noticed(prompts, tmp_path, server, capsys, monkeypatch):
    async def served_model(self):
        return pb.ModelInfo(model_id=ids.pop())

    ids = ["two", "one"]
    monkeypatch.setattr(Servers, "served_model", served_model)
    out = tmp_path / "out"
    assert main(["batch", str(prompts), "--out", str(out), "--target", server.target, "--max-chars", "5"]) == 2
    assert capsys.readouterr().err == (
        f"error: the servers' model was replaced during the run: {out}.part has texts of both; remove it\n"
    )
    assert not out.exists()


# ---- the run by itself


class Made:
    """Servers that answer each prompt in a moment, and refuse or fail where the prompt says so."""

    def __init__(self):
        self.running = self.most = 0

    async def text(self, request, on_characters):
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.001 * (request.sampling.seed % 5))
        self.running -= 1
        if request.prompt == "refused":
            raise RefusedError("no such character")
        if request.prompt == "fails":
            raise ServerError(Code.INTERNAL, "an engine round failed")
        on_characters(len(request.prompt))
        return GeneratedText(request.prompt, "LENGTH", len(request.prompt))


async def made(tmp_path, prompts, streams):
    """Run over these prompts; return the results, and how far ahead of the output the input was read at most."""
    path = tmp_path / "prompts"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    checked, ahead, source, error = check(path, DEFAULTS), [], Made(), None
    with BatchOutput(tmp_path / "out", checked.numbering, Fingerprint("i", "p", "m")) as output:

        def watched():
            for prompt in read(path, checked, DEFAULTS, output.is_wanted):
                ahead.append(prompt.line - output.done)
                yield prompt

        batch = Batch(source, watched(), output, streams)
        try:
            await batch.run()
        except ServerError as raised:
            error = raised
        return batch, source, max(ahead), lines_of(output.part), error


async def test_no_more_texts_at_a_time_than_streams(tmp_path):
    batch, source, ahead, lines, _ = await made(tmp_path, ["ab"] * 200, 7)
    assert (source.most, ahead, batch.characters) == (7, 7, 400)
    assert sorted(line["line"] for line in lines) == list(range(1, 201))


async def test_a_refused_prompt_is_a_line_of_its_own(tmp_path):
    *_, lines, _ = await made(tmp_path, ["a", "refused", "b"], 1)
    assert [line.get("text") for line in lines] == ["a", None, "b"]
    assert lines[1]["error"] == "no such character"
    assert {"line", "id", "seed", "run"} < lines[1].keys()


async def test_what_is_complete_stays_when_the_source_fails(tmp_path):
    *_, lines, error = await made(tmp_path, ["a", "b", "fails", "c"], 1)
    assert [line["text"] for line in lines] == ["a", "b"]
    assert error.code is Code.INTERNAL


# ---- servers that do as they are told


def full(seconds=0.01):
    info, packed = RetryInfo(), Any()
    info.retry_delay.FromMilliseconds(int(1000 * seconds))
    packed.Pack(info)
    return Status(code=Code.RESOURCE_EXHAUSTED.value[0], message="the line is full", details=[packed])


class Fake(TextGenerationServicer):
    """A server whose calls end with the next of `errors`, and with a text when there are no more."""

    def __init__(self, *errors, model_id="m"):
        self.errors, self.model_id, self.calls = list(errors), model_id, 0

    async def ListModels(self, request, context):
        info = pb.ModelInfo(name="fake", model_id=self.model_id, streamable=True)
        tagger = pb.ModelInfo(name="tagger", model_id="t")
        return pb.ListModelsResponse(models=[info, tagger])

    async def Generate(self, request, context):
        self.calls += 1
        assert request.model == "fake"
        yield pb.GenerateResponse(text="a", seed=request.sampling.seed) if not self.errors else await self.end(context)
        yield pb.GenerateResponse(text="bc", position=1, finish_reason=pb.FINISH_REASON_LENGTH)

    async def end(self, context):
        error = self.errors.pop(0)
        if isinstance(error, Status):
            context.set_trailing_metadata((("grpc-status-details-bin", error.SerializeToString()),))
            await context.abort(Code.RESOURCE_EXHAUSTED, error.message)
        context.set_trailing_metadata((("x-request-id", "1"),))
        await context.abort(error, "no")


@asynccontextmanager
async def serving(*fakes, retry_seconds=5.0, model=""):
    """Start these servers; yields the clients of them."""
    started, targets = [], []
    for fake in fakes:
        server = grpc.aio.server()
        add_TextGenerationServicer_to_server(fake, server)
        targets.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        started.append(server)
    source = Servers(",".join(targets), model, retry_seconds)
    try:
        assert (await source.served_model()).model_id == fakes[0].model_id
        yield source
    finally:
        await source.close()
        for server in started:
            await server.stop(0)


REQUEST = {"prompt": "p", "max_chars": 3, "sampling": pb.Sampling(seed=1)}


async def test_a_full_waiting_line_is_waited_for(monkeypatch):
    monkeypatch.setattr("rill.cli.batch.runner.FIRST_WAIT", 0.01)
    fake, came = Fake(*[full()] * 5, Code.UNAVAILABLE, full()), []
    async with serving(fake) as source:
        assert await source.text(pb.GenerateRequest(**REQUEST), came.append) == GeneratedText("abc", "LENGTH", 3)
    assert (fake.calls, came) == (8, [1, 2])


@pytest.mark.parametrize("code", [Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED])
async def test_a_request_at_fault_is_refused(code):
    """RESOURCE_EXHAUSTED without a retry delay means that the request is too large."""
    async with serving(Fake(code)) as source:
        with pytest.raises(RefusedError, match="no"):
            await source.text(pb.GenerateRequest(**REQUEST), len)
        assert await source.text(pb.GenerateRequest(**REQUEST), lambda count: None) == GeneratedText("abc", "LENGTH", 3)


@pytest.mark.parametrize("code", [Code.INTERNAL, Code.NOT_FOUND, Code.UNAUTHENTICATED])
async def test_other_errors_end_the_run(code):
    async with serving(Fake(code)) as source:
        with pytest.raises(ServerError) as caught:
            await source.text(pb.GenerateRequest(**REQUEST), len)
    assert caught.value.code is code


async def test_a_server_that_is_away_too_long(monkeypatch):
    monkeypatch.setattr("rill.cli.batch.runner.FIRST_WAIT", 0.01)
    fake = Fake(*[Code.UNAVAILABLE] * 1000)
    started = time.monotonic()
    async with serving(fake, retry_seconds=0.3) as source:
        with pytest.raises(ServerError, match="no"):
            await source.text(pb.GenerateRequest(**REQUEST), len)
    assert time.monotonic() - started >= 0.3
    assert fake.calls > 2


async def test_servers_share_the_texts():
    fakes = [Fake(), Fake(), Fake()]
    async with serving(*fakes) as source:
        for _ in range(9):
            await source.text(pb.GenerateRequest(**REQUEST), lambda count: None)
    assert [fake.calls for fake in fakes] == [3, 3, 3]


async def test_servers_of_other_models_are_refused():
    with pytest.raises(ValueError, match="the servers have different models named 'fake'"):
        async with serving(Fake(), Fake(model_id="n")):
            pass
    with pytest.raises(ValueError, match="tagger is a tagging or bidirectional model"):
        async with serving(Fake(), model="tagger"):
            pass
