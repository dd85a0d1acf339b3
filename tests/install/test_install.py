"""Install the wheel into clean environments, and use it as a stranger would. `make test-install`."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from environments import Builds, Environment, clean_environment, create, crowd
from servers import ROOT, Server

from rill import Client

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

# Distributions that a client must not pull in.
FORBIDDEN = {"torch", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy", "cryptography", "prometheus-client", "psutil"}
BASE_MEGABYTES = 60
OTHER_PYTHONS = sorted({"3.11", "3.12", "3.13", "3.14"} - {f"{sys.version_info[0]}.{sys.version_info[1]}"})
TOLERANCE = 2.0  # times: a machine may be busy

CLIENT = """
import sys
from rill import Client
with Client(sys.argv[1]) as client:
    print("".join(client.generate("a", max_chars=50, seed=7)), end="")
"""


@pytest.fixture(scope="session")
def serve_cpu(builds: Builds, tmp_path_factory) -> Environment:
    return create(tmp_path_factory.mktemp("serve"), [builds.requirement("serve-cpu")])


@contextmanager
def serving(environment: Environment, bundle: Path, cwd: Path):
    """`rill serve` of that environment, run in the folder `cwd`; yields its address."""
    command = [environment.path("rill"), "serve", str(bundle), "--port", "0"]
    with subprocess.Popen(command, cwd=cwd, env=clean_environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            found = re.match(r"rill: listening on (\S+) ", process.stdout.readline())
            assert found
            yield found[1]
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0


def _text(target: str) -> str:
    with Client(target) as client:
        return "".join(client.generate("a", max_chars=50, seed=7))


def _generates(environment: Environment, target: str, cwd: Path) -> None:
    """The command and the library give the text that this process gets."""
    command = ["generate", "a", "--target", target, "--max-chars", 50, "--seed", 7]
    assert environment.run("rill", *command, cwd=cwd).stdout == _text(target)
    assert environment.run("python", "-W", "error", "-c", CLIENT, target, cwd=cwd).stdout == _text(target)


def test_the_size_of_the_base(base: Environment, measured):
    packages = base.packages()
    assert not FORBIDDEN & set(packages)
    megabytes = base.megabytes()
    measured(f"base: {megabytes:.1f} MB, pip install {base.seconds:.1f} s: {', '.join(sorted(packages))}")
    assert megabytes <= BASE_MEGABYTES


def test_commands_of_the_base(base: Environment, elsewhere, server: Server):
    assert base.run("rill", "--help", cwd=elsewhere).stdout.startswith("usage: rill")
    assert base.run("python", "-m", "rill", "--help", cwd=elsewhere).stdout.startswith("usage: rill")
    assert "tiny" in base.run("rill", "models", "--target", server.target, cwd=elsewhere).stdout
    _generates(base, server.target, elsewhere)


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        ("train --corpus pydoc --out runs/new", "train"),
        ("export runs/new --out bundles", "train"),
        ("serve bundles/new", "serve"),
        ("bench --bundle bundles/new", "bench"),
    ],
)
@pytest.mark.parametrize("entry", [["rill"], ["python", "-m", "rill"], ["python", "-m"]], ids=" ".join)
def test_a_command_whose_extra_is_missing_names_it(base: Environment, elsewhere, arguments, extra, entry):
    name, *rest = arguments.split()
    command = [*entry, name] if entry[-1] == "rill" else [*entry, f"rill.{name}"]
    done = base.run(*command, *rest, cwd=elsewhere, status=2)
    assert re.fullmatch(rf"error: rill {name} needs the package '\w+'; .*\[{extra}\]'\n", done.stderr), done.stderr


def test_a_private_server_needs_the_extra_of_the_server(base: Environment, elsewhere, tiny_folder):
    done = base.run("rill", "generate", "a", "--bundle", tiny_folder, cwd=elsewhere, status=2)
    assert re.fullmatch(r"error: rill serve needs the package '\w+'; .*\[serve\]'\n", done.stderr), done.stderr


def _best_seconds(environment: Environment, cwd: Path, *command: str) -> float:
    """Of nine runs, by the child's own clock: from before its start to its end."""
    program = (
        "import subprocess, sys, time\n"
        "def seconds():\n"
        "    start = time.perf_counter()\n"
        "    subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)\n"
        "    return time.perf_counter() - start\n"
        "print(min(seconds() for _ in range(9)))"
    )
    path = environment.path(command[0])
    return float(environment.run("python", "-c", program, path, *command[1:], cwd=cwd).stdout)


@pytest.mark.parametrize(
    ("limit", "command"), [(0.15, ["python", "-c", "import rill"]), (0.3, ["rill", "--help"])], ids=str
)
def test_how_fast_the_base_starts(base: Environment, tmp_path, limit, command, measured):
    seconds = _best_seconds(base, tmp_path, *command)
    measured(f"{' '.join(command)}: {seconds:.3f} s (at most {limit})")
    assert seconds <= limit * TOLERANCE


def test_a_server_from_the_wheel(base: Environment, serve_cpu: Environment, elsewhere, tiny_folder):
    assert "torch" not in serve_cpu.packages()
    with serving(serve_cpu, tiny_folder, elsewhere) as target:
        _generates(base, target, elsewhere)
    private = ["generate", "a", "--bundle", tiny_folder, "--max-chars", 50]
    assert len(serve_cpu.run("rill", *private, cwd=elsewhere).stdout) == 50


def test_the_server_runs_with_the_lowest_versions_it_allows(builds: Builds, tmp_path, tiny_folder, measured):
    bounds = builds.lower_bounds("serve-base", "runtime-cpu", "serve-cpu")
    if sys.version_info >= (3, 13):
        pytest.skip("the lowest versions have wheels for Python 3.11 and 3.12")
    environment = create(tmp_path / "venv", [builds.requirement("serve-cpu"), *bounds], constrained=False)
    measured(f"lowest versions, serve-cpu: {', '.join(bounds)}")
    with serving(environment, tiny_folder, tmp_path) as target:
        _generates(environment, target, tmp_path)


def test_how_fast_the_server_shows_its_help(serve_cpu: Environment, tmp_path, measured):
    seconds = _best_seconds(serve_cpu, tmp_path, "rill", "serve", "--help")
    measured(f"rill serve --help: {seconds:.3f} s (at most 0.5); serve-cpu: {serve_cpu.megabytes():.0f} MB")
    assert seconds <= 0.5 * TOLERANCE


@pytest.mark.parametrize(
    "requirements",
    [None, ["protobuf<6", "grpcio<1.70"], ["protobuf<7", "grpcio<1.79"], []],
    ids=["lowest", "protobuf 5", "protobuf 6", "newest"],
)
def test_the_client_lives_beside_other_versions(builds: Builds, tmp_path, server: Server, requirements, measured):
    """Protobuf 5, 6 and 7, and gRPC of two years; the lowest are the bounds in pyproject.toml."""
    if requirements is None:
        requirements = builds.lower_bounds()
        if sys.version_info >= (3, 14):
            pytest.skip("the lowest versions have wheels for Python 3.11 to 3.13")
    environment = create(tmp_path / "venv", [builds.requirement(), *requirements], constrained=False)
    found = environment.packages()
    names = ("grpcio", "protobuf", "googleapis-common-protos", "rich", "prompt-toolkit")
    measured("client with " + ", ".join(f"{name} {found[name]}" for name in names))
    _generates(environment, server.target, tmp_path)


@pytest.mark.parametrize("version", OTHER_PYTHONS)
def test_the_base_on_other_pythons(builds: Builds, tmp_path, server: Server, version, measured):
    python = shutil.which(f"python{version}")
    if not python or subprocess.run([python, "--version"], capture_output=True, check=False).returncode:
        pytest.skip(f"no python{version} on this machine")
    environment = create(tmp_path / "venv", [builds.requirement()], python=python)
    _generates(environment, server.target, tmp_path)
    measured(f"base on Python {version}: pip install {environment.seconds:.1f} s")


def test_train_export_and_serve_from_the_wheel(builds: Builds, serve_cpu: Environment, tmp_path, measured):
    """A text becomes a run, a bundle and a stream, far from the checkout."""
    environment = create(tmp_path / "venv", [builds.requirement("train")])
    measured(f"train: {environment.megabytes():,.0f} MB, pip install {environment.seconds:.0f} s")
    cwd = tmp_path / "project"
    cwd.mkdir()
    crowd(cwd)
    seconds = _best_seconds(environment, cwd, "rill", "train", "--help")
    measured(f"rill train --help: {seconds:.3f} s (at most 0.5)")
    assert seconds <= 0.5 * TOLERANCE
    (cwd / "corpus.txt").write_text("the time traveller for so it will be convenient to speak of him\n" * 40)
    train = ["train", "--corpus", "corpus.txt", "--out", "runs/new", "--steps", 20, "--hidden", 16]
    environment.run("rill", *train, cwd=cwd)
    environment.run("rill", "export", "runs/new", "--out", "bundles", cwd=cwd)
    environment.run("python", "-m", "rill.export", "runs/new", "--out", "bundles", "--check", cwd=cwd)
    with serving(serve_cpu, cwd / "bundles" / "new", cwd) as target:
        text = environment.run("rill", "generate", "the ", "--target", target, "--max-chars", 50, cwd=cwd).stdout
    assert len(text) == 50


FOREIGN = '''"""A program of somebody else's."""

from collections.abc import AsyncIterator, Iterator

import rill
from rill import AsyncClient, AsyncTextStream, Client, Security, ServerError, TextStream


def first_line(target: str, token: str) -> str:
    with Client(target, security=Security(tls=True, token=token)) as client:
        text = ""
        for piece in client.generate("ROMEO:", max_chars=400, temperature=0.7, seed=7):
            text += piece
    return text.partition("\\n")[0]


def with_details(client: Client) -> tuple[str, int | None]:
    with client.generate("To be", stop="the", logit_bias={"a": -1.0}, logprobs=2, request_id="order-66") as text:
        whole: str = "".join(text)
    reason: str | None = text.finish_reason
    token: bytes = text.resume_token
    likely: list[tuple[str, float]] = [(entry.character, entry.logprob) for entry in text.logprobs]
    count: int = text.usage.generated_chars if text.usage else len(likely)
    print(reason, token, count, rill.__version__)
    return whole, text.seed


def pieces(text: TextStream) -> Iterator[str]:
    return iter(text)


def scored(client: Client) -> float:
    total: float = 0.0
    for message in client.score("To be"):
        total += sum(message.logprobs)
    return total


def in_session(client: Client) -> str:
    try:
        with client.interact(temperature=0.7, top_k=5) as session:
            session.update(top_p=0.5)
            return "".join(session.generate(max_chars=100, stop=["\\n"]))
    except ServerError as error:
        return error.request_id


async def in_asyncio(client: AsyncClient) -> AsyncIterator[str]:
    text: AsyncTextStream = client.generate("To be", max_chars=0)
    async for piece in text:
        yield piece
    async with client.interact(seed=3) as session:
        print((await session.feed("To be")).logprob)


models: int = len(Client("127.0.0.1:50051").models().models)
'''
MISTAKES = {
    "max_chars=400": 'max_chars="400"',
    "temperature=0.7, seed": "temprature=0.7, seed",
    "seed=7)": "seed=7.5)",
    'stop="the"': "stop=3",
    'request_id="order-66"': "request_id=66",
    "reason: str | None = text.finish_reason": "reason: str | None = text.finished",
    "token: bytes": "token: str",
    "text.usage.generated_chars if": "text.usage.generated_characters if",
    "top_k=5": "top_k=5.5",
    "session.update(top_p=0.5)": "session.update(warmth=0.5)",
    "session.generate(max_chars=100": "session.generate(chars=100",
    "return error.request_id": "return error.id",
    "(await session.feed": "(session.feed",
    "client.score(": "client.scores(",
    "models: int": "models: str",
}


@pytest.fixture(scope="module")
def type_checkers(builds: Builds, tmp_path_factory) -> Environment:
    pyright = "pyright" if shutil.which("node") else "pyright[nodejs]"
    return create(tmp_path_factory.mktemp("types"), [builds.requirement(), "mypy", pyright, "types-protobuf"])


def test_type_checkers_accept_a_foreign_program_and_find_its_mistakes(type_checkers: Environment, tmp_path):
    wrong = FOREIGN
    for right, mistake in MISTAKES.items():
        assert wrong.count(right) == 1, right
        wrong = wrong.replace(right, mistake)
    expected = {
        number
        for number, (one, other) in enumerate(zip(FOREIGN.splitlines(), wrong.splitlines(), strict=True), 1)
        if one != other
    }
    (tmp_path / "right.py").write_text(FOREIGN)
    (tmp_path / "wrong.py").write_text(wrong)
    mypy, pyright = ["mypy", "--strict"], ["pyright", "--pythonpath", type_checkers.path("python")]
    for checker in (mypy, pyright):
        type_checkers.run(*checker, "right.py", cwd=tmp_path)
        report = type_checkers.run(*checker, "wrong.py", cwd=tmp_path, status=1).stdout
        found = {int(line) for line in re.findall(r"wrong\.py:(\d+)(?::\d+)?(?: -|:) error", report)}
        assert expected <= found, report


OPENTELEMETRY = """
import asyncio
import sys
from opentelemetry import trace
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient, GrpcInstrumentorClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
spans, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)
GrpcInstrumentorClient().instrument()
GrpcAioInstrumentorClient().instrument()
from rill import AsyncClient, Client, ServerError

with Client(sys.argv[1]) as client:
    text = client.generate("a", max_chars=50, seed=7)
    whole = "".join(text)
    assert (len(whole), text.finish_reason) == (50, "LENGTH")
    with client.generate("a", max_chars=0, chars_per_second=100) as endless:
        next(endless)
    assert sum(len(message.logprobs) for message in client.score("abc")) == 3
    try:
        next(client.generate("\N{GRINNING FACE}"))
    except ServerError as error:
        assert error.request_id
    with client.interact(seed=7) as session:
        session.feed("a")
        assert len("".join(session.generate(max_chars=30))) == 30

async def run():
    async with AsyncClient(sys.argv[1]) as client:
        assert "".join([piece async for piece in client.generate("a", max_chars=50, seed=7)]) == whole
        async with client.generate("a", max_chars=0, chars_per_second=100) as endless:
            await anext(endless)
        async with client.interact(seed=7) as session:
            await session.feed("a")
            assert len("".join([piece async for piece in session.generate(max_chars=30)])) == 30
        while (await client.models()).streams_running:
            await asyncio.sleep(0.05)

asyncio.run(run())
print(*sorted({span.name.rpartition("/")[2] for span in spans.get_finished_spans()}))
"""


def test_a_client_instrumented_by_opentelemetry(builds: Builds, tmp_path, server: Server):
    packages = ["opentelemetry-sdk", "opentelemetry-instrumentation-grpc"]
    environment = create(tmp_path / "venv", [builds.requirement(), *packages])
    done = environment.run("python", "-c", OPENTELEMETRY, server.target, cwd=tmp_path)
    assert done.stdout == "Generate Interact ListModels Score\n"


STREAM_SECONDS = 30.0  # at most, from the end of the download to the first streamed byte


def test_a_stream_thirty_seconds_after_the_download(builds: Builds, tmp_path, measured):
    """`pip install` from files on disk, `rill demo`, and the curl that it prints, in a folder that is not the checkout.

    Neither a home nor anything that can be written is needed: the demo writes nothing.
    """
    curl = shutil.which("curl")
    if not curl:
        pytest.skip("there is no curl")
    wheels = tmp_path / "wheels"
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--constraint", str(ROOT / "constraints.txt")]
    requirement = builds.requirement("serve-cpu,http")
    subprocess.run([*download, "--dest", str(wheels), requirement], check=True, env=clean_environment())
    environment = create(tmp_path / "venv", ["--no-index", "--find-links", str(wheels), requirement], constrained=False)
    for folder in environment.folder.rglob("site-packages"):
        folder.chmod(0o555)
    started = time.monotonic()
    given = {"PATH": f"{environment.path('')}:{os.environ['PATH']}"}
    command = [environment.path("rill"), "demo", "--port", "0", "--http-port", "0"]
    with subprocess.Popen(command, cwd="/", env=given, stdout=subprocess.PIPE, text=True) as process:
        try:
            printed = "".join(iter(process.stdout.readline, "Ctrl-C ends it.\n"))
            (request,) = [line.strip() for line in printed.splitlines() if line.startswith("  curl ")]
            (generate,) = [line.strip() for line in printed.splitlines() if line.startswith("  rill ")]
            with subprocess.Popen(["sh", "-c", f"exec {request}"], env=given, stdout=subprocess.PIPE) as stream:
                first = stream.stdout.read(1)
                seconds = environment.seconds + time.monotonic() - started
                rest = stream.stdout.read()
            done = subprocess.run(
                ["sh", "-c", generate], env=given, cwd="/", capture_output=True, text=True, check=True
            )
        finally:
            process.send_signal(signal.SIGINT)
    assert process.returncode == 0
    assert (first + rest).endswith(b"data: [DONE]\n\n")
    assert len(done.stdout) > 100
    measured(f"demo: pip install {environment.seconds:.1f} s, first streamed byte {seconds:.1f} s after the download")
    assert seconds <= STREAM_SECONDS * TOLERANCE
