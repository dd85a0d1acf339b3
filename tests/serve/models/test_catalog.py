"""Several models in one server: turns by time, and bundles that are added, changed and removed while streams run."""

import asyncio
import json
import shutil
import signal
import threading
import time
import weakref
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest
from live_streams import live_stream
from random_models import make_run, save_bundle
from servers import run_server, wait_until

from rill.bundle import MANIFEST, read_bundle
from rill.client.errors import ServerError
from rill.sampling import Sampling
from rill.serve.config import ServerConfig
from rill.serve.engine.decoder import Decoder
from rill.serve.engine.device_turns import DeviceTurns
from rill.serve.engine.devices import CPU
from rill.serve.engine.types import FinishReason, StreamSpec
from rill.serve.errors import ModelNotFoundError, OtherModelError, StartError
from rill.serve.models.catalog import Catalog
from rill.serve.models.model import Model
from rill.serve.operate.server import model_maker
from rill.v1 import rill_pb2 as pb

LENGTH = 10_000  # characters: a minute of the streams that run across a change
PACE = 150  # characters a second


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Bundles to copy from: `old` and `new` are both named `a`."""
    folder = tmp_path_factory.mktemp("store")
    for at, name in enumerate(["old/a", "new/a", "b", "c"]):
        save_bundle(make_run(seed=at, hidden=16 + 8 * at), folder / name)
    return folder


@pytest.fixture
def served(tmp_path, store):
    """A folder with two bundles."""
    put(store / "old/a", tmp_path / "served/a")
    put(store / "b", tmp_path / "served/b")
    return tmp_path / "served"


def put(source, target):
    """Copy the folder of a bundle to a place where there may be one."""
    aside = target.with_name(f".{target.name}.new")
    shutil.copytree(source, aside)
    if target.exists():
        shutil.rmtree(target)
    aside.rename(target)


def models_of(client):
    return {model.name: model.model_id for model in client.models().models}


def id_of(folder):
    return read_bundle(folder).model_id


def text(client, model=""):
    return "".join(client.generate("To", model=model, max_chars=LENGTH, seed=5))


class Paced:
    """A slow stream of the text of `text`."""

    def __init__(self, client, model=""):
        sampling = pb.Sampling(seed=5)
        self.messages = client.stream(
            pb.GenerateRequest(model=model, prompt="To", sampling=sampling, chars_per_second=PACE)
        )
        self.text = next(self.messages).text

    def read(self, count):
        """Read so many more characters."""
        wanted = len(self.text) + count
        while len(self.text) < wanted:
            self.text += next(self.messages).text


# ---- a server and its signals


def test_bundles_are_added_changed_and_removed_while_a_stream_runs(served, store):
    with run_server(served) as running, running.client() as client:
        assert running.line.endswith("(models: a, b; provider: CPUExecutionProvider)\n")
        old = text(client, "a")
        stream = Paced(client, "a")

        put(store / "new/a", served / "a")
        put(store / "c", served / "c")
        shutil.rmtree(served / "b")
        running.process.send_signal(signal.SIGHUP)
        wait_until(lambda: list(models_of(client)) == ["a", "c"])
        assert models_of(client)["a"] == id_of(store / "new/a")
        assert client.models().streams_running == 1  # of the old one
        assert len({old, text(client, "a"), text(client, "c")}) == 3
        with pytest.raises(ServerError) as caught:
            text(client, "b")
        assert caught.value.code is grpc.StatusCode.NOT_FOUND

        stream.read(100)
        assert old.startswith(stream.text)
        stream.messages.close()
        log = [running.process.stderr.readline()]
        while sum(line.endswith("is unloaded\n") for line in log) < 2:
            log.append(running.process.stderr.readline())
        assert client.models().streams_running == 0
        status, _ = running.stop()
    assert status == 0
    for name in ("old/a", "b"):
        assert f"({id_of(store / name)[:12]}) is unloaded" in "".join(log)


def test_a_damaged_new_bundle_is_refused_and_the_others_are_served(served, store):
    with run_server(served) as running, running.client() as client:
        before = text(client, "a"), text(client, "b")
        graph = served / "a" / "decode.onnx"
        graph.write_bytes(graph.read_bytes()[:1000])
        put(store / "new/a", served / "d")
        (served / "d" / "decode.onnx").unlink()
        (served / "d" / MANIFEST).unlink()  # half copied
        put(store / "c", served / "c")
        running.process.send_signal(signal.SIGHUP)
        wait_until(lambda: list(models_of(client)) == ["a", "b", "c"])
        assert (text(client, "a"), text(client, "b")) == before
        status, log = running.stop()
    assert status == 0
    assert "decode.onnx is damaged" in log
    assert "a (" + id_of(store / "old/a")[:12] + ") stays" in log
    assert f"{served / 'd'} is not a bundle: it has no manifest.json" in log
    assert "Traceback" not in log


def test_a_hangup_during_a_drain_changes_nothing(served, store):
    with run_server(served, "--drain-seconds", 30) as running, running.client() as client:
        old = text(client)
        stream = Paced(client)
        running.process.send_signal(signal.SIGTERM)
        wait_until(lambda: client.models().draining)
        put(store / "new/a", served / "a")
        running.process.send_signal(signal.SIGHUP)
        stream.read(100)
        assert old.startswith(stream.text)
        stream.messages.close()
        status, log = running.process.wait(timeout=20), running.process.stderr.read()
    assert status == 0
    assert "the server is going away; the models stay as they are" in log
    assert "is loaded" not in log


def test_a_token_finds_its_model(served, store):
    with run_server(served) as running, running.client() as client:
        expected = text(client, "b")
        first = list(client.stream(pb.GenerateRequest(model="b", prompt="To", max_chars=300, sampling={"seed": 5})))
        token = first[-1].resume_token
        rest = "".join(client.generate(resume_token=token, max_chars=LENGTH - 300))
        assert "".join(message.text for message in first) + rest == expected
        with pytest.raises(ServerError) as caught:
            list(client.generate(model="a", resume_token=token, max_chars=5))
        assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
        with pytest.raises(ServerError) as caught:
            list(client.generate(resume_token=token[:-1] + b"\0", max_chars=5))
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
        # A model that takes no new calls takes no tokens, whether it still has streams or not.
        running_stream = client.stream(pb.GenerateRequest(model="b", chars_per_second=10))
        next(running_stream)
        shutil.rmtree(served / "b")
        running.process.send_signal(signal.SIGHUP)
        wait_until(lambda: list(models_of(client)) == ["a"])
        with pytest.raises(ServerError, match="a model that is not served here; the models are 'a'") as caught:
            list(client.generate(resume_token=token, max_chars=5))
        assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
        running_stream.close()


def edit(folder, **change):
    """Change entries of a bundle's manifest."""
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | change))


def spoil(served, store):
    """Put bundles that cannot be served into a folder of bundles; returns what the log says about each."""
    for name in ("damaged", "half", "not-json", "old-format", "newline", "a-copy"):
        put(store / "c", served / name)
    graph = served / "damaged" / "decode.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    (served / "half" / MANIFEST).unlink()
    (served / "not-json" / MANIFEST).write_text("{")
    edit(served / "old-format", format_version=1)
    edit(served / "newline", name="a\nb")
    edit(served / "a-copy", name="a")
    (served / "lost+found").mkdir()  # not a bundle
    return [
        f"{graph} is damaged: its checksum differs from the manifest; export the run again",
        f"{served / 'half'} is not a bundle: it has no manifest.json",
        f"{served / 'not-json' / MANIFEST} is not JSON",
        f"{served / 'old-format' / MANIFEST} has an older format",
        f"{served / 'newline' / MANIFEST} is wrong: 'a\\nb' cannot be the 'name' of a bundle",
        f"{served / 'a-copy'} is named 'a' as {served / 'a'} is; export it under another name, or remove it",
    ]


def test_bad_bundles_in_a_folder_do_not_stop_the_server(served, store):
    told = spoil(served, store)
    with run_server(served) as running, running.client() as client:
        assert running.line.endswith("(models: a, b; provider: CPUExecutionProvider)\n")
        put(store / "c", served / "c")
        put(store / "c", served / "d")  # a copy: named `c`
        edit(served / "d", name="c")
        running.process.send_signal(signal.SIGHUP)
        wait_until(lambda: list(models_of(client)) == ["a", "b", "c"])
        status, log = running.stop()
    assert status == 0
    for line in told:
        assert log.count(line) == 2, line  # at the start and at the reload
    assert log.count("; it is not served") == 2 * len(told) + 1
    assert "lost+found" not in log
    assert "Traceback" not in log


@pytest.mark.parametrize("what", ["empty", "half", "bad", "given", "names"])
def test_folders_that_cannot_be_served(what, tmp_path, store, run_command):
    folder = tmp_path / "served"
    folder.mkdir()
    paths = [folder]
    if what == "half":
        put(store / "c", folder / "c")
        (folder / "c" / MANIFEST).unlink()
    if what == "bad":
        spoil(folder, store)
        shutil.rmtree(folder / "a-copy")
    if what == "given":  # by its name: it is asked for, so it must be served
        paths = [store / "b", folder / "nothing"]
    if what == "names":
        paths = [store / "old/a", store / "new/a"]
    done = run_command("rill.serve", *paths, "--port", 0)
    assert done.returncode == 2
    message = {
        "empty": f"error: {folder} is not a bundle: it has no manifest.json",
        "half": f"error: {folder / 'c'} is not a bundle: it has no manifest.json",
        "bad": f"error: none of the 5 bundles can be served; the first: {folder}/damaged/decode.onnx is damaged",
        "given": f"error: {folder / 'nothing'} is not a bundle: no such folder",
        "names": "error: two bundles are named 'a'",
    }
    assert message[what] in done.stderr
    assert done.stderr.count("\n") == 1


# ---- the set of models in process


@asynccontextmanager
async def loaded(*paths):
    models = Catalog(list(map(str, paths)), model_maker(ServerConfig([], max_streams=8), print))
    try:
        await models.start()
        yield models
    finally:
        await models.close()
        assert engines() == 0


def engines():
    return sum(thread.name == "rill-engine" for thread in threading.enumerate())


def spec(count, seed=0):
    return StreamSpec(np.ones(1, np.int64), 1, Sampling(), seed, count)


async def text_of(model, wanted):
    async with live_stream(model, wanted) as stream:
        return await read_on(model, stream)


async def read_on(model, stream):
    made, end = "", None
    while end is None:
        piece, end = await stream.next_piece()
        model.mark_sent(stream, piece.text)
        made += piece.text
    assert end is FinishReason.LENGTH
    return made


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)


async def test_an_old_model_and_its_memory_are_freed_after_its_last_stream(served, store):
    async with loaded(served) as models:
        old, kept = models.served
        decoder = weakref.ref(old.engine._decoder)
        async with live_stream(old, spec(0)) as stream:
            put(store / "new/a", served / "a")
            await models.reload()
            assert models.by_name("b") is kept
            assert models.by_name("a") is not old
            assert models.all == [*models.served, old]
            assert engines() == 3
            piece, _ = await stream.next_piece()
            assert piece.text
        del old
        await until(lambda: len(models.all) == 2)
        assert engines() == 2
        assert decoder() is None


async def test_a_stream_ends_on_the_model_on_which_it_began(served, store):
    async with loaded(served) as models:
        old = models.default
        expected = await text_of(old, spec(30_000))
        async with live_stream(old, spec(30_000)) as stream:
            first, _ = await stream.next_piece()
            old.mark_sent(stream, first.text)
            put(store / "new/a", served / "a")
            await asyncio.gather(models.reload(), models.reload())
            assert models.default is not old
            assert await text_of(models.default, spec(1000)) != expected[:1000]
            assert first.text + await read_on(old, stream) == expected
        await until(lambda: len(models.all) == 2)


async def test_models_keep_the_order_given_whatever_changes(served, store, tmp_path):
    async with loaded(store / "c", served) as models:
        assert models.names == ["c", "a", "b"]
        put(store / "new/a", served / "a")
        put(store / "old/a", served / "0")
        same = models.served
        await models.reload()
        assert models.names == ["c", "a", "b"]  # the one in `0` is named `a`, too, but its folder is not
        assert models.served[1] is not same[1]
        assert models.served[::2] == same[::2]
        assert len(models.all) == 4  # the old `a` ends
        shutil.rmtree(served / "0")
        await models.reload()
        assert models.names == ["c", "a", "b"]
        shutil.rmtree(served)
        await models.reload()
        assert models.names == ["c"]
        assert models.default is same[0]


async def test_a_folder_that_moves_keeps_its_model(served):
    async with loaded(served) as models:
        a, b = models.served
        (served / "a").rename(served / "z")
        await models.reload()
        assert models.served == [b, a]


async def test_the_last_model_stays(served):
    async with loaded(served) as models:
        before = models.served
        served.rename(served.with_name("away"))
        await models.reload()
        assert models.served == before


async def test_a_bundle_that_cannot_be_loaded_is_refused(served, store, monkeypatch):
    """A complete bundle that fails in ONNX Runtime."""
    make = model_maker(ServerConfig([], max_streams=8), print)
    fails = [StartError("ONNX Runtime does not want it"), RuntimeError("out of memory")]

    def make_or_fail(bundle):
        if bundle.model_id == id_of(store / "new/a") and fails:
            raise fails.pop()
        return make(bundle)

    models = Catalog([str(served)], make_or_fail)
    await models.start()
    before = models.served
    put(store / "new/a", served / "a")
    for _ in range(2):
        await models.reload()
        assert models.served == before
    await models.reload()
    assert models.default is not before[0]
    await models.close()
    assert engines() == 0


async def test_a_start_without_the_bundles_that_fail(served, store, caplog):
    """One that fails in ONNX Runtime, and one that no other user may read (`lost+found` of a disk, for example)."""
    make = model_maker(ServerConfig([], max_streams=8), print)

    def make_or_fail(bundle):
        if bundle.name == "a":
            raise RuntimeError("out of memory")
        return make(bundle)

    models = Catalog([str(served)], make_or_fail)
    await models.start()
    assert models.names == ["b"]
    assert "out of memory; it is not served" in caplog.text
    await models.close()
    with pytest.raises(RuntimeError, match="out of memory"):
        await Catalog([str(served / "b"), str(served / "a")], make_or_fail).start()
    assert engines() == 0


async def test_a_folder_that_may_not_be_read_is_named(served, monkeypatch, caplog):
    is_file = type(served).is_file

    def is_file_or_secret(path):
        if path.parent.name == "a":
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(type(served), "is_file", is_file_or_secret)
    async with loaded(served) as models:
        assert models.names == ["b"]
    assert f"{served / 'a'} cannot be read (Permission denied); check its permissions; it is not served" in caplog.text


async def test_a_bundle_is_found_and_given(served):
    """The order of the paths chooses the default; a bundle counts once."""
    async with loaded(served / "b", served) as models:
        assert models.names == ["b", "a"]
    async with loaded(served, served / "b") as models:
        assert models.names == ["a", "b"]


async def test_streams_and_the_event_loop_run_while_a_bundle_loads(served, store):
    make = model_maker(ServerConfig([], max_streams=8), print)
    proceed = threading.Event()

    def make_slowly(bundle):
        if bundle.name == "c":
            assert proceed.wait(20)
        return make(bundle)

    models = Catalog([str(served)], make_slowly)
    await models.start()
    put(store / "c", served / "c")
    reloading = asyncio.create_task(models.reload())
    await asyncio.sleep(0.05)
    assert len(await text_of(models.default, spec(1000))) == 1000
    models.freeze()  # the server is to stop meanwhile
    proceed.set()
    await reloading
    assert models.names == ["a", "b"]
    await models.close()
    assert engines() == 0


async def test_models_are_found_by_name_and_id(served, store):
    async with loaded(served) as models:
        assert models.by_name("b").bundle.name == "b"
        assert models.by_id_prefix(id_of(store / "b")[:32]) is models.by_name("b")
        with pytest.raises(ModelNotFoundError, match="no model 'c' is served here; the models are 'a', 'b'"):
            models.by_name("c")
        with pytest.raises(OtherModelError):
            models.by_id_prefix(id_of(store / "c")[:32])


# ---- turns


class Timed(Decoder):
    """A decoder that counts the seconds of its rounds, and how many decoders run one at the same time."""

    inside, most = 0, 0
    lock = threading.Lock()

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.seconds, self.rounds = 0.0, 0

    def run(self, *arguments):
        with Timed.lock:
            Timed.inside += 1
            Timed.most = max(Timed.most, Timed.inside)
        started = time.monotonic()
        try:
            return super().run(*arguments)
        finally:
            self.seconds += time.monotonic() - started
            self.rounds += 1
            with Timed.lock:
                Timed.inside -= 1


async def test_busy_models_get_equal_time(store):
    """One has long rounds, one short ones: equal numbers of rounds would give it a tenth of the time."""
    device_turns, models, readers = DeviceTurns(1), [], []

    async def read(model, seed):
        async with live_stream(model, spec(0, seed)) as stream:
            while True:
                piece, _ = await stream.next_piece()
                model.mark_sent(stream, piece.text)

    for name, round_seconds in (("old/a", 0.020), ("b", 0.002)):
        bundle = read_bundle(store / name)
        decoder = Timed(bundle, CPU)
        models.append(Model(bundle, decoder, 8, 8, round_seconds, device_turns))
        readers += [asyncio.create_task(read(models[-1], seed)) for seed in range(4)]
    decoders = [model.engine._decoder for model in models]
    await asyncio.sleep(0.3)
    Timed.most = 0
    before = [(decoder.seconds, decoder.rounds) for decoder in decoders]
    await asyncio.sleep(1.5)
    seconds, rounds = zip(
        *((d.seconds - s, d.rounds - r) for d, (s, r) in zip(decoders, before, strict=True)), strict=True
    )
    for reader in readers:
        reader.cancel()
    await asyncio.wait(readers)
    for model in models:
        await model.wait_until_idle()
        model.engine.stop()
    assert Timed.most == 1
    assert rounds[1] > 3 * rounds[0]
    assert 0.5 < seconds[0] / seconds[1] < 2
