"""Servers are killed or drained and restarted, while a client streams: the text is the undisturbed one."""

import os
import random
import signal
import threading
import time
from contextlib import ExitStack, contextmanager
from itertools import accumulate

import pytest
from servers import started, wait_until

from rill.client.failover import Failover
from rill.client.requests import generate_request
from rill.client.symbols import symbol_count
from rill.client.sync import Client

pytestmark = pytest.mark.long

KILLS = int(os.environ.get("RILL_KILLS", "8"))
MOLECULES = {"prompt": "c1cc[nH]Cl", "logit_bias": {"<end>": float("-inf")}}  # a text without an end


class Reader(threading.Thread):
    """Reads an endless text until told to end."""

    def __init__(self, client, request):
        super().__init__()
        self.client, self.request = client, request
        self.messages, self.position, self.enough, self.error = [], 0, False, None

    def run(self):
        messages = self.client.stream(self.request)
        try:
            while not self.enough:
                message = next(messages)
                self.messages.append(message)
                self.position = message.position + symbol_count(message)
        except Exception as error:
            self.error = error
        finally:
            messages.close()

    def wait_for_more(self):
        """Until a character comes that was not there."""
        position = self.position
        wait_until(lambda: self.position > position or self.error is not None, seconds=30)
        assert self.error is None


@pytest.fixture
def breaks(monkeypatch):
    """The statuses of the calls that broke."""
    codes, ended = [], Failover.ended

    def counted(self, error):
        if error is not None:
            codes.append(error.code().name)
        return ended(self, error)

    monkeypatch.setattr(Failover, "ended", counted)
    return codes


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(bytes(range(32)))
    return path


@contextmanager
def reading(target, **parameters):
    """A client and a reader of an endless paced text, which has begun to come."""
    usual = {"prompt": "To be", "max_chars": 0, "chars_per_second": 3000}
    with Client(target) as client:
        reader = Reader(client, generate_request(**{**usual, **parameters}))
        reader.start()
        try:
            yield client, reader
        finally:
            reader.enough = True
            reader.join(60)


def is_undisturbed(client, reader):
    """Whether what was read, and no more of it, is what a client gets from one call."""
    reader.enough = True
    reader.join(60)
    assert not reader.is_alive()
    assert reader.error is None
    text = "".join(message.text for message in reader.messages)
    counts, lengths = map(symbol_count, reader.messages), [len(message.text) for message in reader.messages]
    assert [message.position for message in reader.messages] == list(accumulate(counts, initial=0))[:-1]
    assert [message.text_position for message in reader.messages] == list(accumulate(lengths, initial=0))[:-1]
    assert not any(message.finish_reason for message in reader.messages)
    request = reader.request
    bias, seed = dict(request.sampling.logit_bias), reader.messages[0].seed
    return text == "".join(client.generate(request.prompt, max_chars=reader.position, seed=seed, logit_bias=bias))


@pytest.mark.timeout(60 + 6 * KILLS)
@pytest.mark.parametrize(
    ("model", "parameters", "kills"),
    [
        ("tiny_folder", {}, KILLS),
        ("tiny_folder", {"resume_every": 0}, -(-KILLS // 4)),  # without tokens each begins at the prompt again
        ("molecule_folder", MOLECULES, KILLS),
        ("molecule_folder", {**MOLECULES, "resume_every": 0}, -(-KILLS // 4)),
    ],
    ids=["tokens", "no tokens", "molecules", "molecules without tokens"],
)
def test_kills_change_nothing(request, model, key, breaks, parameters, kills):
    folder = request.getfixturevalue(model)
    chance = random.Random(5)
    with ExitStack() as stack:
        with started(folder, key) as server:
            client, reader = stack.enter_context(reading(server.target, **parameters))
            reader.wait_for_more()
            time.sleep(chance.uniform(0, 0.5))
        for kill in range(1, kills):
            with started(folder, key, server.port):
                if kill % 3:  # else at any moment, while it may still be catching up
                    reader.wait_for_more()
                time.sleep(chance.uniform(0, 0.4))
        with started(folder, key, server.port):
            reader.wait_for_more()
            assert is_undisturbed(client, reader)
    assert len(breaks) >= kills * 2 / 3
    assert set(breaks) == {"UNAVAILABLE"}


def test_two_servers_restarted_in_turn_change_nothing(tiny_folder, key, breaks):
    """Each drains while the other takes over; nothing is generated twice, as drained streams end with a token."""
    with ExitStack() as stack:
        runs = [stack.enter_context(ExitStack()) for _ in range(2)]
        servers = [run.enter_context(started(tiny_folder, key, end=signal.SIGTERM)) for run in runs]
        target = ",".join(server.target for server in servers)
        client, reader = stack.enter_context(reading(target, logprobs=1, stop=["never"]))
        for restart in range(4):
            reader.wait_for_more()
            run, port = runs[restart % 2], servers[restart % 2].port
            run.close()
            run.enter_context(started(tiny_folder, key, port, end=signal.SIGTERM))
        reader.wait_for_more()
        assert is_undisturbed(client, reader)
    assert breaks == ["UNAVAILABLE"] * 4
    assert all(len(message.logprobs) == len(message.text) for message in reader.messages)


class Script:
    """What an application does with a session: reads, texts and new parameters, drawn from a seed."""

    def __init__(self, session, seed):
        self.session, self.chance, self.text, self.steps = session, random.Random(seed), "", 0

    def step(self, pace):
        self.steps += 1
        match self.chance.randrange(4):
            case 0:
                read = "".join(self.chance.choices("abc ", k=5))
                assert self.session.feed(read).chars == 5
            case 1:
                self.session.update(temperature=self.chance.choice([0.5, 0.8, 1.1]))
            case _:
                count = self.chance.randrange(1, 1500)
                made = "".join(self.session.generate(max_chars=count, chars_per_second=pace))
                assert len(made) == count
                self.text += made


@pytest.mark.timeout(60 + 6 * KILLS)
def test_kills_do_not_change_a_session(tiny_folder, key):
    chance, interrupted = random.Random(6), []
    with ExitStack() as stack:
        run = stack.enter_context(ExitStack())
        server = run.enter_context(started(tiny_folder, key))
        client = stack.enter_context(Client(server.target))
        script = Script(stack.enter_context(client.interact(seed=3, on_interrupted=interrupted.append)), seed=1)

        def kill():
            for _ in range(KILLS):
                position = script.session.position
                wait_until(lambda position=position: script.session.position > position, seconds=30)
                time.sleep(chance.uniform(0, 0.4))
                run.close()
                run.enter_context(
                    started(tiny_folder, key, server.port, chance.choice([signal.SIGKILL, signal.SIGTERM]))
                )

        killer = threading.Thread(target=kill)
        killer.start()
        while killer.is_alive():
            script.step(pace=2000)
        script.step(pace=2000)
        with client.interact(seed=3) as session:
            again = Script(session, seed=1)
            while again.steps < script.steps:
                again.step(pace=0)
    assert script.text == again.text
    assert len(interrupted) >= KILLS * 2 / 3
    assert {error.code.name for error in interrupted} == {"UNAVAILABLE"}
