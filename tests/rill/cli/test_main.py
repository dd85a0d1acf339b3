"""The `rill` command: which program runs, what is loaded for it, and its help."""

import subprocess
import sys
from pathlib import Path

import pytest
from grpc import StatusCode
from servers import ROOT

from rill.cli.main import ABOUT, CLIENTS, HELP, main
from rill.client.errors import ServerError
from rill.programs import PROGRAMS

HEAVY = ["grpc", "google.protobuf", "rich", "prompt_toolkit", "torch", "onnxruntime", "numpy", "argparse"]


def loaded(*arguments):
    """Run `rill ARGUMENTS`; return its exit status, and which of the heavy packages it has loaded."""
    program = f"""
import sys
from rill.cli.main import main
try:
    status = main({list(arguments)!r})
except SystemExit as ended:
    status = ended.code
print("loaded", status, *(name for name in {HEAVY!r} if name in sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    _, status, *names = done.stdout.splitlines()[-1].split()
    return int(status), names


def test_every_command_has_a_line_of_help(capsys):
    for arguments in (["help"], ["--help"], ["-h"]):
        assert main(arguments) == 0
        assert capsys.readouterr().out == HELP
    assert set(ABOUT) == set(CLIENTS) | set(PROGRAMS)
    assert all(f"\n  {name:9} {line}\n" in HELP for name, line in ABOUT.items())


def test_the_help_loads_nothing(capsys):
    assert loaded("--help") == (0, [])
    assert loaded("--version") == (0, [])
    assert loaded("nothing") == (2, [])


@pytest.mark.parametrize("name", CLIENTS)
def test_each_client_command_has_help_and_loads_what_it_needs(name, capsys):
    status, names = loaded(name, "--help")
    assert status == 0
    assert set(names) <= {"argparse", "grpc", "google.protobuf", "rich"}
    assert ("rich" in names) == (name in ("score", "batch"))
    for arguments in ([name, "--help"], ["help", name]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: rill {name} ")


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_gets_its_arguments_as_they_are(name, monkeypatch):
    seen = []
    monkeypatch.setattr("rill.cli.main.run_program", lambda *given: seen.append(given) or 3)
    assert main([name, "a", "--help", "--", "-x"]) == 3
    assert main(["help", name]) == 3
    assert seen == [(name, ["a", "--help", "--", "-x"]), (name, ["--help"])]


@pytest.mark.skipif(sys.platform == "win32", reason="its processes are counted in another way")
def test_help_comes_soon():
    """Processor time, the least of five: other programs run beside this test."""
    import resource  # noqa: PLC0415  # Unix only

    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "rill", "--help"], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.3


def test_the_version_is_the_distribution_s(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("rill ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generat"], "error: there is no command 'generat'; did you mean rill generate?\n"),
        (["tran", "--corpus", "x"], "error: there is no command 'tran'; did you mean rill train?\n"),
        (["help", "modles"], "error: there is no command 'modles'; did you mean rill models?\n"),
        (["xyz"], "error: there is no command 'xyz'; rill help lists the commands\n"),
        (["--nothing"], "error: there is no command '--nothing'; rill help lists the commands\n"),
        ([], f"{HELP}\n"),
    ],
)
def test_a_typo_is_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr() == ("", message)


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("INTERNAL", "error: an engine round failed (INTERNAL, request id order-66)\n"),
        ("INVALID_ARGUMENT", "error: an engine round failed (INVALID_ARGUMENT)\n"),
    ],
)
def test_an_error_that_only_the_server_can_explain_has_the_request_id(code, line, monkeypatch, capsys):
    def fail(options):
        raise ServerError(StatusCode[code], "an engine round failed", request_id="order-66")

    monkeypatch.setattr("rill.cli.models.run", fail)
    assert main(["models"]) == 1
    assert capsys.readouterr().err == line


def test_python_m_rill_is_the_same():
    done = subprocess.run(
        [sys.executable, "-m", "rill", "generat"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("did you mean rill generate?\n")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    ("redirection", "status", "message"),
    [
        (">&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        pytest.param(
            ">/dev/full",
            1,
            "error: cannot write: No space left on device\n",
            marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full"),
        ),
    ],
)
@pytest.mark.parametrize("command", ["--help", "--version"])
def test_output_that_cannot_be_written_is_not_a_traceback(command, redirection, status, message):
    shell = ["sh", "-c", f'exec "$0" -W error -m rill {command} {redirection}', sys.executable]
    done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", message)
