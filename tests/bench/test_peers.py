"""The peers answer Generate correctly: a wrong baseline would be worthless."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
import torch
from random_models import LETTERS, make_run, save_bundle
from servers import ROOT

from rill.bench import peers
from rill.bench.peers import MLSERVER, PEERS, installed_peers, stub_of
from rill.bench.peers.eager import eager_texts
from rill.bench.peers.service import Service
from rill.bench.peers.step import step_texts
from rill.bench.server import own_server
from rill.bundle import Bundle
from rill.sampling import Sampling, choose
from rill.train.record.run import Run
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub
from rill.vocabulary import UNKNOWN


@pytest.fixture(scope="module", params=PEERS)
def stub(request: pytest.FixtureRequest, tiny_folder: Path) -> Iterator[TextGenerationStub]:
    command = [sys.executable, "-W", "error", "-m", f"rill.bench.peers.{request.param}", "--bundle", str(tiny_folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith("peer: listening on 127.0.0.1:")
        with grpc.insecure_channel(line.split()[3]) as channel:
            yield TextGenerationStub(channel)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
        assert (process.returncode, said) == (0, "")


def text_of(stub: TextGenerationStub, **fields: object) -> str:
    return "".join(message.text for message in stub.Generate(pb.GenerateRequest(**fields), timeout=30))


def test_a_text_arrives_character_by_character(stub: TextGenerationStub) -> None:
    request = pb.GenerateRequest(prompt="The time", max_chars=40, sampling=pb.Sampling(seed=1, temperature=0.9))
    messages = list(stub.Generate(request, timeout=30))
    assert [message.position for message in messages] == list(range(40))
    assert all(len(message.text) == 1 and message.text in LETTERS for message in messages)
    ends = [message.finish_reason for message in messages]
    assert ends == [pb.FINISH_REASON_UNSPECIFIED] * 39 + [pb.FINISH_REASON_LENGTH]


def test_a_text_depends_on_seed_and_prompt(stub: TextGenerationStub) -> None:
    one = {"prompt": "a", "max_chars": 50, "sampling": pb.Sampling(seed=1, temperature=0.1)}
    assert text_of(stub, **one) == text_of(stub, **one)
    assert text_of(stub, **one) != text_of(stub, **one | {"sampling": pb.Sampling(seed=2, temperature=0.1)})
    assert text_of(stub, **one) != text_of(stub, **one | {"prompt": "bc"})
    assert text_of(stub, **one | {"prompt": ""}) == text_of(stub, **one | {"prompt": "\n"})


def test_a_text_without_limit_continues_until_cancelled(stub: TextGenerationStub) -> None:
    call = stub.Generate(pb.GenerateRequest(), timeout=30)
    assert len([next(call).text for _ in range(300)]) == 300
    call.cancel()


def test_what_a_peer_cannot_do_is_an_error(stub: TextGenerationStub) -> None:
    for request, code in (
        (pb.GenerateRequest(max_chars=1, prompt="≠"), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.GenerateRequest(max_chars=1, sampling=pb.Sampling(temperature=0)), grpc.StatusCode.UNIMPLEMENTED),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            next(stub.Generate(request, timeout=30))
        assert raised.value.code() is code


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_the_step_peer_generates_the_model_s_characters(cell: str, tmp_path: Path) -> None:
    run = make_run(cell=cell, layers=2)
    bundle = save_bundle(run, tmp_path / cell)
    text, model = step_texts(bundle)(0.8), run.build()
    tokens, state = [3, 5], None
    for u in np.random.default_rng(0).random(30, dtype=np.float32).tolist():
        with torch.inference_mode():
            logits, state = model(torch.tensor([tokens]), state)
        chosen = text.step(tokens, u)
        assert chosen == choose(logits[0, -1].numpy(), u, Sampling(temperature=0.8))
        tokens = [chosen]


@pytest.mark.parametrize("texts", [eager_texts, step_texts])
def test_no_peer_generates_the_unknown_symbol(texts, tmp_path: Path) -> None:
    bundle: Bundle = save_bundle(_lavish(make_run((UNKNOWN, "a", "b"))), tmp_path / "unknown")
    text, token = texts(bundle)(5.0), 1
    for u in np.random.default_rng(0).random(200):
        token = text.step([token], u)
        assert token in (1, 2)


def _lavish(run: Run) -> Run:
    run.weights["linear.bias"][0] += 20
    return run


class Sent:
    """A call whose messages are kept."""

    def __init__(self) -> None:
        self.messages: list[pb.GenerateResponse] = []

    async def write(self, message: pb.GenerateResponse) -> None:
        self.messages.append(message)


@pytest.mark.parametrize("texts", [step_texts, eager_texts])
async def test_a_peer_ends_texts_of_longer_symbols(texts, molecules: Bundle) -> None:
    service, vocabulary = Service(molecules, texts(molecules)), molecules.vocabulary
    ended = 0
    for seed in range(12):
        call = Sent()
        request = pb.GenerateRequest(prompt="CCl", max_chars=30, sampling=pb.Sampling(seed=seed))
        await service.Generate(request, call)
        *messages, last = call.messages
        symbols = [message.text for message in messages]
        assert set(symbols) <= set(vocabulary.symbols) - {"<start>", "<end>"}
        assert [list(message.symbol_lengths) for message in messages] == [[len(symbol)] for symbol in symbols]
        assert [message.position for message in call.messages] == list(range(len(messages) + 1))
        if last.finish_reason == pb.FINISH_REASON_STOP:
            ended += 1
            assert not last.text
        else:
            assert (last.finish_reason, last.position) == (pb.FINISH_REASON_LENGTH, 29)
    assert 0 < ended <= 12


def test_mlserver_is_a_peer_where_it_is_installed(tiny_folder: Path) -> None:
    """It is measured like any peer, through a client of its protocol."""
    pytest.importorskip("mlserver", reason="MLServer is not installed")

    async def read() -> list[list[pb.GenerateResponse]]:
        command = [sys.executable, "-m", f"rill.bench.peers.{MLSERVER}", "--bundle", str(tiny_folder)]
        async with own_server(command, None) as server, grpc.aio.insecure_channel(server.target) as channel:
            stub = stub_of(MLSERVER)(channel)
            requests = [
                pb.GenerateRequest(prompt=prompt, max_chars=30, sampling=pb.Sampling(seed=seed))
                for prompt, seed in [("The time", 1), ("The time", 1), ("The time", 2), ("", 1)]
            ]
            return [[message async for message in stub.Generate(request)] for request in requests]

    first, same, *others = asyncio.run(read())
    assert [message.position for message in first] == list(range(30))
    assert all(len(message.text) == 1 and message.text in LETTERS for message in first)
    ends = [message.finish_reason for message in first]
    assert ends == [pb.FINISH_REASON_UNSPECIFIED] * 29 + [pb.FINISH_REASON_LENGTH]
    assert first == same
    assert first not in others
    assert MLSERVER in installed_peers()


def test_without_mlserver_the_plain_peers_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    assert installed_peers() == PEERS


def test_a_peer_is_ended_with_its_context(tiny_folder: Path) -> None:
    command = [sys.executable, "-m", "rill.bench.peers.step", "--bundle", str(tiny_folder)]
    processes = []

    async def start_and_fail() -> None:
        async with own_server(command, None) as server:
            processes.extend(server.processes)
            raise KeyError

    with pytest.raises(KeyError):
        asyncio.run(start_and_fail())
    assert not processes[0].is_running()


def test_the_step_peer_does_not_load_torch() -> None:
    program = "import sys, rill.bench.peers.step; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
