"""Two servers under everything at once: no character is lost or doubled, and nothing is left behind.

One server is killed or drained again and again; the other must stand it all, while its second model is replaced. `make
soak` does this for ten minutes (RILL_SOAK_SECONDS).
"""

import os
import random
import signal
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field

import grpc
import numpy as np
import psutil
import pytest
from calls import Request, Talk
from random_models import make_run, save_bundle
from servers import run_server, started, wait_until

from rill.client.sync import Client
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub

pytestmark = pytest.mark.long

SECONDS = float(os.environ.get("RILL_SOAK_SECONDS", "6"))
CYCLES = int(os.environ.get("RILL_CONNECTIONS", "300"))
LENGTH = 6000  # characters of the texts that are compared
OWN_CHANNEL = [("grpc.use_local_subchannel_pool", 1)]
WARM = 0.3  # of the time: caches and allocators fill meanwhile


@dataclass
class Course:
    """What goes on: until when, what it is compared with, and what happened."""

    targets: tuple[str, str]  # the one that is killed, and the one that stays
    end: float
    texts: dict[int, str] = field(default_factory=dict)  # by seed
    done: dict[str, int] = field(default_factory=dict)  # how often
    faults: list[str] = field(default_factory=list)

    def target(self, chance):
        return ",".join(chance.sample(self.targets, 2))


def undisturbed(course, chance):
    """A text through both servers, whatever happens to one of them."""
    seed = chance.choice(list(course.texts))
    count = chance.choice([1, 100, LENGTH])
    with Client(course.target(chance)) as client:
        text = "".join(client.generate(max_chars=count, seed=seed, resume_every=chance.choice([0, 10, 500])))
    assert text == course.texts[seed][:count]


def slow(course, chance):
    """A reader that stops now and then."""
    seed = chance.choice(list(course.texts))
    with Client(course.target(chance)) as client, closing(client.generate(max_chars=LENGTH, seed=seed)) as pieces:
        text = ""
        for piece in pieces:
            text += piece
            if chance.random() < 0.1:
                time.sleep(0.2)
    assert text == course.texts[seed]


def paced(course, chance):
    seed = chance.choice(list(course.texts))
    with Client(course.target(chance)) as client:
        text = "".join(client.generate(max_chars=60, seed=seed, chars_per_second=60))
    assert text == course.texts[seed][:60]


def left(course, chance):
    """Calls that nobody waits for: cancelled in mid-text, or never read."""
    with grpc.insecure_channel(course.targets[1], OWN_CHANNEL) as channel:
        stub = TextGenerationStub(channel)
        calls = [stub.Generate(pb.GenerateRequest(prompt="a" * chance.choice([0, 500]))) for _ in range(20)]
        next(calls[0])
        time.sleep(chance.uniform(0, 0.3))
        for call in calls:
            call.cancel()


def stopped(course, chance):
    seed = chance.choice(list(course.texts))
    whole = course.texts[seed]
    stop = whole[(at := chance.randrange(10, 1000)) : at + 5]
    with Client(course.target(chance)) as client:
        assert "".join(client.generate(max_chars=LENGTH, seed=seed, stop=[stop])) == whole[: whole.index(stop)]


def scored(course, chance):
    seed = chance.choice(list(course.texts))
    text, as_prompt = course.texts[seed][: chance.choice([1, 3000])], chance.random() < 0.5
    with Client(course.targets[1]) as client:
        *_, last = client.score(text, as_prompt=as_prompt, top_logprobs=chance.choice([None, 0, 5]))
        if as_prompt:
            continued = client.generate(resume_token=last.total.resume_token, max_chars=50, seed=seed)
            assert "".join(continued) == "".join(client.generate(text, max_chars=50, seed=seed))
    assert last.total.chars == len(text) - as_prompt
    assert -10 * last.total.chars <= last.total.logprob <= 0


def interactive(course, chance):
    """Begun, paused and gone on, on the server that stays."""
    seed = chance.choice(list(course.texts))
    at = Talk(course.targets[1])
    try:
        at.open(seed=seed)
        text = ""
        for _ in range(3):
            at.begin()
            time.sleep(chance.uniform(0, 0.02))
            made, paused = at.pause()
            text += made
            assert paused.position == len(text)
        assert text[:LENGTH] == course.texts[seed][: len(text)]
        if chance.random() < 0.5:
            at.end()
            assert list(at.call) == []
    finally:
        at.call.cancel()
        at.channel.close()


def conversing(course, chance):
    """A session through both servers, whatever happens to one of them; some of its text is read back in."""
    seed = chance.choice(list(course.texts))
    with Client(course.target(chance)) as client, client.interact(seed=seed) as session:
        text = ""
        while len(text) < LENGTH:
            count = min(chance.randrange(1, 2000), LENGTH - len(text))
            text += "".join(session.generate(max_chars=count, chars_per_second=chance.choice([0, 5000])))
        assert session.feed(text[:100]).chars == 100
    assert text == course.texts[seed]


def refused(course, chance):
    """What has no meaning is answered, and costs nobody anything."""
    with grpc.insecure_channel(course.targets[1], OWN_CHANNEL) as channel:
        stub = TextGenerationStub(channel)
        for call in (
            stub.Generate(pb.GenerateRequest(resume_token=chance.randbytes(500))),
            stub.Generate(pb.GenerateRequest(sampling=pb.Sampling(temperature=-1))),
            stub.Score(pb.ScoreRequest(text="中")),
            stub.Interact(iter([Request(feed="a")])),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                list(call)
            assert caught.value.code() in (
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.FAILED_PRECONDITION,
            )


KINDS = (undisturbed, slow, paced, left, stopped, scored, interactive, conversing, refused)


def work(course, number):
    chance = random.Random(number)
    while time.monotonic() < course.end and not course.faults:
        kind = chance.choice(KINDS)
        try:
            kind(course, chance)
        except Exception as error:  # in a thread: told at the end
            course.faults.append(f"{kind.__name__}: {error!r}")
        course.done[kind.__name__] = course.done.get(kind.__name__, 0) + 1


def kill_again_and_again(course, folder, key, port):
    """The first server: begun, killed or drained, and begun again."""
    chance = random.Random(0)
    while time.monotonic() < course.end and not course.faults:
        with suppress(AssertionError), started(folder, key, port, chance.choice([signal.SIGKILL, signal.SIGTERM])):
            time.sleep(chance.uniform(0.5, 4))
        course.done["ends of a server"] = course.done.get("ends of a server", 0) + 1


def replace_again_and_again(course, folder, process):
    """The second model of the second server: another one under its name."""
    number = 0
    while time.monotonic() < course.end and not course.faults:
        number += 1
        save_bundle(make_run(hidden=16, seed=number), folder / "new" / "other")
        (folder / "all" / "other").rename(folder / f"old{number}")
        (folder / "new" / "other").rename(folder / "all" / "other")
        process.send_signal(signal.SIGHUP)
        course.done["reloads"] = number
        time.sleep(2)


def figures(process):
    return process.memory_info().rss, process.num_threads(), process.num_fds()


def test_everything_at_once(tmp_path):
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    save_bundle(make_run(), tmp_path / "all" / "main")
    save_bundle(make_run(hidden=16), tmp_path / "all" / "other")
    with started(tmp_path / "all", key, end=signal.SIGTERM) as first:
        pass  # a port that is free
    with run_server(tmp_path / "all", "--resume-key-file", key) as server, server.client() as client:
        course = Course((first.target, server.target), time.monotonic() + SECONDS)
        for seed in range(5):
            course.texts[seed] = "".join(client.generate(max_chars=LENGTH, seed=seed))
        process, samples = psutil.Process(server.process.pid), []
        threads = [threading.Thread(target=work, args=(course, number)) for number in range(6)]
        threads.append(threading.Thread(target=kill_again_and_again, args=(course, tmp_path / "all", key, first.port)))
        threads.append(threading.Thread(target=replace_again_and_again, args=(course, tmp_path, server.process)))
        began = time.monotonic()
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            samples.append((time.monotonic() - began, *figures(process)))
            time.sleep(0.5)
        for thread in threads:
            thread.join()
        assert not course.faults
        wait_until(lambda: client.models().streams_running == client.models().streams_waiting == 0)
        assert "".join(client.generate(max_chars=LENGTH, seed=0)) == course.texts[0]
        exit_status, errors = server.stop()
    assert exit_status == 0
    assert "Traceback" not in errors
    warm = np.array([sample for sample in samples if sample[0] > WARM * SECONDS])
    slope = np.polyfit(warm[:, 0], warm[:, 1] / 2**20, 1)[0] if len(warm) > 2 else 0.0
    (_, memory, *_), (_, memory_after, *_) = warm[0] / 2**20, warm[-1] / 2**20
    print(f"\n{course.done}")
    print(f"memory {memory:.1f} -> {memory_after:.1f} MiB, {60 * slope:.2f} a minute", end="; ")
    print(f"threads {warm[0, 2]:.0f} -> {warm[-1, 2]:.0f}, files {warm[0, 3]:.0f} -> {warm[-1, 3]:.0f}")
    if SECONDS > 200:
        assert 60 * slope < 1
    assert set(course.done) >= {"ends of a server", "reloads"}


def test_connections_that_are_dropped_leave_nothing(tiny_folder):
    """Connect, call, cancel: memory, threads, files and slots stay where they were."""
    # Nobody reads the log here, and up to 10,000 of its lines would wait for that.
    with run_server(tiny_folder, "--no-access-log") as server, server.client() as client:
        process, seen = psutil.Process(server.process.pid), []
        for cycle in range(CYCLES):
            if cycle in (CYCLES // 3, CYCLES - 1):
                wait_until(lambda: client.models().streams_running == 0)
                seen.append(figures(process))
            with grpc.insecure_channel(server.target, OWN_CHANNEL) as channel:
                call = TextGenerationStub(channel).Generate(pb.GenerateRequest(prompt="a" * (cycle % 3 * 100)))
                if cycle % 2:
                    next(call)
                call.cancel()
        wait_until(lambda: client.models().streams_running == 0)
        print(f"\n{CYCLES} connections: {seen}")
        (memory, threads, files), (memory_after, threads_after, files_after) = seen
        assert memory_after - memory < 5e6
        assert threads_after <= threads + 2
        assert files_after <= files + 5
