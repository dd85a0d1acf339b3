"""Standard streams that are closed, full, without a reader, or of an encoding that lacks characters."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from random_models import make_run, save_bundle
from servers import ROOT

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
FULL, CLOSED = "No space left on device", "Broken pipe"


def shell(command, **environment):
    """Run `rill COMMAND` by a shell; returns its exit status, stdout and stderr."""
    line = f"{sys.executable} -W error -m rill {command}; exit ${{PIPESTATUS[0]}}"
    variables = {**os.environ, "LC_ALL": "C.UTF-8", **environment}
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(("redirection", "reason"), [("> /dev/full", FULL), ("| true", CLOSED)])
@pytest.mark.parametrize("options", ["", "--engines 2", "--check-config"])
def test_a_server_that_cannot_say_that_it_listens_does_not_start(tiny_folder, options, redirection, reason):
    status, _, errors = shell(f"serve {tiny_folder} --port 0 --no-access-log {options} --log-format json {redirection}")
    assert status == 2
    lines = [json.loads(line) for line in errors.splitlines()]
    assert lines[-1]["message"] == f"cannot write to stdout: {reason}"


def test_a_server_without_streams_starts(tiny_folder):
    assert shell(f"serve {tiny_folder} --check-config <&- >&- 2>&-") == (0, "", "")


@pytest.mark.parametrize("redirection", ["2> /dev/full", "2>&-", "2> >(true)"])
@pytest.mark.parametrize("command", ["serve nowhere", "serve --nothing", "train --nothing", "nothing"])
def test_errors_that_cannot_be_written_have_their_status(command, redirection):
    assert shell(f"{command} {redirection}") == (2, "", "")


def test_a_name_that_an_encoding_lacks_is_written_as_an_escape(tmp_path):
    save_bundle(make_run(), tmp_path / "漢é")
    for option in ("", "--log-format json"):
        given = f"serve {tmp_path} --check-config {option}"
        status, output, errors = shell(given, PYTHONIOENCODING="ascii")
        assert (status, errors) == (0, "")
        assert "models: \\u6f22\\xe9;" in output


def test_unbuffered_output_is_the_same(server):
    assert shell(f"models --target {server.target} > /dev/full", PYTHONUNBUFFERED="1") == (
        1,
        "",
        f"error: cannot write: {FULL}\n",
    )
