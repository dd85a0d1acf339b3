"""`rill verify` passes honest bundles, and catches each kind of dishonest server by the check for it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from asyncio import sleep, to_thread
from contextlib import asynccontextmanager

import grpc.aio
import psutil
import pytest
from servers import ROOT, run_server, wait_until

from rill.cli.main import main
from rill.cli.verify.checks import cases_of
from rill.export.graphs.build import build_bundle
from rill.export.write import manifest_of, write_bundle
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationServicer, add_TextGenerationServicer_to_server
from rill.vocabulary import Vocabulary

CHARACTERS = list("abcdefghijklmnop")
MOLECULES = {
    "vocabulary": ["<start>", *"CNOcn1234=()", "Cl", "Br", "[nH]", "%10", "<end>"],
    "tokenizer": r"regex:\[[^\]]{1,9}\]|%\d{2}|Cl|Br|.",
    "start_symbol": "<start>",
    "end_symbols": ["<end>"],
}
CHECKS = ["alone", "crowd", "chunked", "resumed", "forked"]
SMALL = ("--chars", 150, "--streams", 20)
SMALLEST = ("--chars", 60, "--streams", 5)


@pytest.fixture(scope="module")
def tiny_int8_folder(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "tiny-int8"
    bundle = build_bundle(tiny_run, folder.name, "int8")
    write_bundle(bundle, manifest_of(bundle, {}, {}), folder)
    return folder


def serving(parent):
    """Find the server processes that `parent` has started."""
    return [
        child for child in psutil.Process(parent).children(recursive=True) if "rill.cli.local_server" in child.cmdline()
    ]


@pytest.fixture
def verify_here(monkeypatch, capfd):
    """Run `rill verify ARGUMENTS` here, with fewer pauses of the slow reader; return status, output and errors."""
    monkeypatch.setattr("rill.cli.verify.checks.PAUSES", 3)

    def run(*arguments):
        status = main(["verify", *map(str, arguments)])
        return status, *capfd.readouterr()

    return run


@pytest.mark.long
def test_honest_bundles_pass(verify_here, tiny_folder, tiny_int8_folder):
    status, output, errors = verify_here(tiny_folder, tiny_int8_folder, *SMALL)
    assert (status, errors) == (0, "")
    lines = [line.split(maxsplit=5) for line in output.splitlines()]
    assert [(line[0], line[1], line[4]) for line in lines] == [
        (*model, check) for model in [("tiny", "fp32"), ("tiny-int8", "int8")] for check in CHECKS
    ]
    assert all(": ok  " in line[5] for line in lines)
    assert lines[0][5].startswith("9 texts, 1,350 characters")


@pytest.mark.long
def test_honest_molecules_pass(verify_here, molecule_folder):
    status, output, errors = verify_here(molecule_folder, *SMALL)
    assert (status, errors) == (0, "")
    assert [line.split()[4] for line in output.splitlines()] == CHECKS


@pytest.mark.long
def test_one_json_object_has_everything(run_command, tmp_path, tiny_folder):
    """It has the bundles that can be verified, even if others cannot."""
    done = run_command("rill", "verify", tmp_path / "nothing", tiny_folder, *SMALL, "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (2, False)
    assert [f"error: {error}\n" for error in report["errors"]] == [done.stderr]
    (model,) = report["models"]
    assert (model["name"], model["precision"], model["ok"]) == ("tiny", "fp32", True)
    assert (len(model["model_id"]), len(model["targets"])) == (64, 2)
    assert model["numerics"].startswith("onnxruntime-")
    assert [(check["check"], check["ok"], check["differences"]) for check in model["checks"]] == [
        (name, True, []) for name in CHECKS
    ]
    counts = {check["check"]: check["texts"] for check in model["checks"]}
    assert counts.pop("crowd") > 9  # visitors too
    assert counts == {"alone": 9, "chunked": 54, "resumed": 9, "forked": 27}
    assert all(check["logprob_difference"] < 1e-5 and check["seconds"] > 0 for check in model["checks"])


@pytest.mark.long
def test_running_servers(verify_here, tmp_path, tiny_folder, tiny_int8_folder):
    """Two servers have one model, and the second another as well."""
    key = tmp_path / "key"
    key.write_bytes(bytes(32))
    with (
        run_server(tiny_folder, "--resume-key-file", key) as one,
        run_server(tiny_int8_folder, tiny_folder, "--resume-key-file", key) as two,
    ):
        both = f"{one.target},{two.target}"
        status, output, _ = verify_here("--target", both, "--model", "tiny", *SMALLEST, "--json")
        (model,) = json.loads(output)["models"]
        assert (status, model["targets"]) == (0, [one.target, two.target])
        # By default a server's first model: two different ones here, each verified by itself.
        status, output, _ = verify_here("--target", both, *SMALLEST)
        note, *lines = output.splitlines()
        assert note.endswith(f"verified separately: {one.target}; {two.target}")
        assert (status, [line.split()[0] for line in lines]) == (0, ["tiny"] * 5 + ["tiny-int8"] * 5)
        status, output, errors = verify_here("--target", one.target, "--model", "huge", *SMALLEST)
        assert (status, output) == (2, "")
        assert errors == f"error: {one.target}: there is no model 'huge'; the server has tiny\n"


def test_what_cannot_be_verified_is_one_line(verify_here, tmp_path, tiny_folder):
    for arguments, message in [
        ([tmp_path / "nothing"], f"error: {tmp_path}/nothing is not a bundle: no such folder"),
        ([tmp_path], f"error: {tmp_path} is not a bundle: it has no manifest.json"),
        (["--target", "127.0.0.1:1"], "error: no server listens at 127.0.0.1:1 "),
        ([tiny_folder, "--device", "tpu"], f"error: {tiny_folder}: --device 'tpu' is not"),
        ([], "error: give at least one BUNDLE to verify, or --target"),
        ([tiny_folder, "--target", "127.0.0.1:1"], "error: give either a bundle or --target, not both"),
        ([tiny_folder, "--model", "tiny"], "error: --model goes with --target"),
    ]:
        status, output, errors = verify_here(*arguments)
        assert (status, output) == (2, ""), arguments
        assert errors.startswith(message)
        assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_no_server(tiny_folder, number, status):
    command = [sys.executable, "-W", "error", "-m", "rill", "verify", tiny_folder]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline()  # the first check is done, the crowd is next
        servers = serving(process.pid)
        os.kill(process.pid, number)
        _, errors = process.communicate(timeout=20)
    assert len(servers) == 2
    assert (process.returncode, errors) == (status, "")
    wait_until(lambda: not any(server.is_running() for server in servers))


def test_an_interrupt_while_servers_start_leaves_none(tiny_folder):
    command = [sys.executable, "-W", "error", "-m", "rill", "verify", tiny_folder]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: serving(process.pid))
        servers = serving(process.pid)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (130, "", "")
    wait_until(lambda: not any(server.is_running() for server in servers))


class Fake(TextGenerationServicer):
    """A server whose characters depend on the request and the position, and on what `fault` names."""

    def __init__(self, fault, numerics="n", **model):
        self.fault, self.numerics, self.model = fault, numerics, {"vocabulary": CHARACTERS, **model}
        self.symbols = [each for each in self.model["vocabulary"] if not each.startswith("<")]
        self.running, self.calls, self.used = 0, 0, {}

    async def ListModels(self, request, context):
        return pb.ListModelsResponse(
            models=[
                pb.ModelInfo(
                    name="fake", model_id="ab" * 32, precision="fp32", numerics=self.numerics, streamable=True,
                    **self.model,
                )
            ]
        )  # fmt: skip

    async def Generate(self, request, context):
        self.running, self.calls = self.running + 1, self.calls + 1
        try:
            async for message in self.messages(request):
                yield message
        finally:
            self.running -= 1

    async def messages(self, request):
        about, start, uses = self.about(request), 0, 0
        if request.resume_token:
            about, start = request.resume_token[:32], int(request.resume_token[32:])
            uses = self.used[request.resume_token] = self.used.get(request.resume_token, 0) + 1
        wrong = {
            "calls": self.calls == 9,
            "resumes": request.resume_token and start != 0,
            "uses": uses == 2,
            "tokens": request.resume_every == 100,
            "pace": request.chars_per_second > 0,
        }.get(self.fault, False)
        for done in range(0, request.max_chars, 7):
            wrong = wrong or (self.fault in ("company", "logprobs") and self.running > 1)
            places = range(start + done, start + min(done + 7, request.max_chars))
            shift = 1 if wrong and self.fault != "logprobs" else 0
            end = next((place for place in places if self.ends_at(about, place)), places.stop)
            if self.fault == "ends" and request.resume_token and end == start:
                end = start + 1  # it goes on
            symbols = [self.symbols[(self.draw(about, place) + shift) % 16] for place in range(places[0], end)]
            message = pb.GenerateResponse(text="".join(symbols), position=places[0])
            if self.symbols != CHARACTERS:
                message.symbol_lengths.extend(map(len, symbols))
            if request.HasField("logprobs"):
                logprob = -1.5 if wrong and self.fault == "logprobs" else -1.0
                message.logprobs.extend(pb.CharLogprob(character=symbol, logprob=logprob) for symbol in symbols)
            if self.fault != "no tokens":
                message.resume_token = about + str(end).encode()
            if end < places.stop:
                message.finish_reason = pb.FINISH_REASON_STOP
            yield message
            if message.finish_reason:
                return
            await sleep(0.001)

    def ends_at(self, about, place):
        return about.startswith(b"end") and self.draw(about, place) < 8

    def about(self, request):
        key = pb.GenerateRequest(prompt=request.prompt, sampling=request.sampling)
        digest = hashlib.sha256(key.SerializeToString(deterministic=True)).digest()
        if "end_symbols" not in self.model or request.sampling.logit_bias.get("<end>"):
            return digest
        return b"end" + digest[3:]

    def draw(self, about, place):
        return hashlib.sha256(about + str(place).encode()).digest()[0] % 16


@asynccontextmanager
async def listening(*fakes):
    """Start these servers; yields their HOST:PORT, separated by commas."""
    servers, targets = [], []
    for fake in fakes:
        server = grpc.aio.server()
        add_TextGenerationServicer_to_server(fake, server)
        targets.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        servers.append(server)
    try:
        yield ",".join(targets)
    finally:
        for server in servers:
            await server.stop(0)


async def verify(run_command, *fakes):
    async with listening(*fakes) as target:
        return await to_thread(run_command, "rill", "verify", "--target", target, *SMALLEST, "--json")


@pytest.mark.parametrize(
    ("fault", "caught", "named"),
    [
        ("", [], ""),
        pytest.param("calls", ["alone"], " alone: character 0: ", marks=pytest.mark.long),
        ("company", ["crowd"], "plain in a crowd: character "),
        pytest.param("logprobs", ["crowd"], "log-probabilities differ by 0.5 nats", marks=pytest.mark.long),
        pytest.param("tokens", ["chunked"], "plain with resume_every 100: character 0: ", marks=pytest.mark.long),
        pytest.param("resumes", ["resumed", "forked"], "plain resumed: character ", marks=pytest.mark.long),
        ("uses", ["forked"], "plain in use 2 of a token: character "),
    ],
)
async def test_a_dishonest_server_is_caught(run_command, fault, caught, named):
    fakes = [Fake(fault)]
    if fault in ("company", "logprobs"):  # a cancelled text may run for a moment longer on one server, and be company
        fakes.append(Fake(fault))
    done = await verify(run_command, *fakes)
    assert (done.returncode, done.stderr) == (1 if caught else 0, "")
    (model,) = json.loads(done.stdout)["models"]
    assert [check["check"] for check in model["checks"] if not check["ok"]] == caught
    differences = [difference for check in model["checks"] for difference in check["differences"]]
    assert any(named in difference for difference in differences) or not caught, differences


@pytest.mark.parametrize(("fault", "caught"), [("", []), ("ends", ["forked"])])
async def test_a_model_with_longer_symbols_and_texts_that_end(run_command, fault, caught):
    done = await verify(run_command, Fake(fault, **MOLECULES))
    assert (done.returncode, done.stderr) == (1 if caught else 0, "")
    (model,) = json.loads(done.stdout)["models"]
    assert [check["check"] for check in model["checks"] if not check["ok"]] == caught
    assert (model["checks"][0]["texts"], model["checks"][0]["characters"] // 60) == (8, 7)  # one of them ends
    assert all(each.startswith("end ") for check in model["checks"] for each in check["differences"])


@pytest.mark.parametrize("tokenizer", [MOLECULES["tokenizer"], "longest"])
def test_prompts_are_of_symbols(tokenizer):
    info = pb.ModelInfo(**{**MOLECULES, "tokenizer": tokenizer})
    vocabulary = Vocabulary(tuple(info.vocabulary), tokenizer, "<start>", ("<end>",))
    prompts = {case.name: case.request.prompt for case in cases_of(info)}
    assert [len(vocabulary.encode(prompts[name])) for name in ("greedy", "long prompt")] == [10, 1000]
    assert "[nH]" in prompts["long prompt"]


async def test_a_vocabulary_that_cannot_be_used_is_one_line(run_command):
    done = await verify(run_command, Fake("", **{**MOLECULES, "tokenizer": "regex:("}))
    assert done.returncode == 2
    assert done.stderr.startswith("error: the vocabulary of fake: the tokenizer's pattern cannot be used: ")


async def test_another_server_with_other_texts_is_caught(run_command):
    done = await verify(run_command, Fake(""), Fake("pace"))
    (model,) = json.loads(done.stdout)["models"]
    assert [check["check"] for check in model["checks"] if not check["ok"]] == ["chunked"]
    assert all(" paced: character 0: " in difference for difference in model["checks"][2]["differences"])


async def test_servers_with_other_numerics_are_verified_each_by_itself(run_command):
    done = await verify(run_command, Fake("", "one"), Fake("", "two"))
    assert done.returncode == 0
    assert [model["numerics"] for model in json.loads(done.stdout)["models"]] == ["one", "two"]


async def test_a_line_shows_where_texts_differ(run_command):
    async with listening(Fake("resumes")) as target:
        done = await to_thread(run_command, "rill", "verify", "--target", target, *SMALLEST)
    assert done.returncode == 1
    assert "  without constraints: " in done.stdout.splitlines()[0]
    line = done.stdout.splitlines()[4]
    start, _, rest = line.partition(": DIFFERS: plain resumed: character ")
    assert start == "fake  fp32  abababababab  n  resumed  7 texts, 420 characters"
    place, got, expected = rest.split(" (and 6 more)")[0].replace(", not ", ": ").split(": ")
    at = min(int(place), 20)
    assert got.strip("'")[:at] == expected.strip("'")[:at]
    assert got.strip("'")[at] != expected.strip("'")[at]


async def test_a_server_that_breaks_is_an_error_and_not_a_difference(run_command):
    done = await verify(run_command, Fake("no tokens"))
    assert done.returncode == 2
    assert done.stderr == "error: plain: the server issued no resume token\n"
