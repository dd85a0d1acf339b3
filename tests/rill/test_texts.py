"""Prompts and other texts in files, on standard input and among arguments, as editors and shells write them."""

import argparse
import io
import os
import subprocess
import sys

import pytest
from servers import ROOT

from rill import texts
from rill.cli.main import main
from rill.texts import decoded, read_lines, read_text, text_argument


def rill(*arguments, given=b"", **environment):
    """Run the command, in an environment with these variables."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "rill", *map(str, arguments)],
        cwd=ROOT,
        input=given,
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", ""),
        (b"a\nb\n", "a\nb\n"),
        (b"\xef\xbb\xbfa\r\nb\r\r\n", "a\nb\n\n"),
        ("\ufeffé\r\n".encode("utf-16-le"), "é\n"),
        ("\ufeffé\r\n".encode("utf-16-be"), "é\n"),
    ],
)
def test_what_editors_write_is_text(data, text):
    assert decoded(data) == text


@pytest.mark.parametrize("data", [b"a\xe9", b"\x89PNG\r\n", b"\xff\xfea", b"\xef\xbb\xbf\xff"])
def test_what_is_not_text_is_one_sentence(data, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(data)
    with pytest.raises(argparse.ArgumentTypeError, match=rf"^{file} is not UTF-8: byte 0x\w\w at offset \d$"):
        read_text(str(file))
    with pytest.raises(ValueError, match=rf"^--flag {file} is not UTF-8"):
        read_lines("--flag", str(file))


def test_utf_16_without_a_mark_is_told():
    for encoding in ("utf-16-le", "utf-16-be"):
        with pytest.raises(ValueError, match=r"^seems to be UTF-16 without a byte order mark; save it as UTF-8$"):
            decoded("ROMEO:".encode(encoding))


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    for path, message in [(tmp_path, "Is a directory"), (tmp_path / "none", "No such file")]:
        with pytest.raises(argparse.ArgumentTypeError, match=f"^cannot read {path}: {message}"):
            read_text(str(path))
    monkeypatch.setattr(texts, "LARGEST", 2**20)
    with pytest.raises(argparse.ArgumentTypeError, match=r"^/dev/zero is larger than 1 MiB$"):
        read_text("/dev/zero")


def test_a_prompt_comes_from_a_file_or_standard_input(server, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"\xef\xbb\xbfTo be\r\nor not")
    flags = ("--target", server.target, "--seed", 7, "--max-chars", 60)
    expected = rill("generate", "To be\nor not", *flags)
    assert (expected.returncode, len(expected.stdout)) == (0, 60)
    for done in (
        rill("generate", "--prompt-file", file, *flags),
        rill("generate", "--prompt-file", "-", *flags, given=file.read_bytes()),
        rill("generate", "-", *flags, given=file.read_bytes()),
    ):
        assert (done.returncode, done.stdout, done.stderr) == (0, expected.stdout, b"")
    assert rill("generate", "-", *flags).stdout == rill("generate", *flags).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--prompt-file", "-"], "error: give either a prompt or --prompt-file, not both\n"),
        (["a", "--logprobs", "3"], "error: --logprobs goes with --json: a text alone does not show them\n"),
        (["a", "--seed", "-1"], "error: seed must be from 0 to 2^64 - 1, not -1\n"),
        (["a", "--max-chars", str(2**63)], "error: max_chars must be from 0 to 2^62 - 1, not 9223372036854775808\n"),
        (["a", "--temperature", "1e400"], "error: temperature must be a number from 0 to 3.4e38, not inf\n"),
        (["a", "--top-p", "nan"], "error: top_p must be a number above 0 and up to 1, not nan\n"),
        (["a", "--logprobs", "999", "--json"], "error: logprobs must be from 0 to 20, not 999\n"),
        (["a", "--resume-every", "-1"], "error: resume_every must be from 0 to 2^64 - 1, not -1\n"),
        (["a", "--stop", ""], "error: stop[0] is empty\n"),
    ],
)
def test_what_generate_refuses_in_a_sentence(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr("rill.cli.generate.read_text", lambda path: "")
    assert main(["generate", *arguments, "--target", "127.0.0.1:1"]) == 2
    assert capsys.readouterr().err.startswith(message)


def test_arguments_are_utf_8_in_every_locale(server):
    """The model does not know these characters, so the answer names the first."""
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = rill("generate", "漢", "--target", server.target, **plain)
    assert done.returncode == 1
    assert b"\\u6f22" in done.stderr
    assert b"U+6F22" in done.stderr
    done = rill("generate", b"\xe9".decode("utf-8", "surrogateescape"), "--target", server.target)
    assert done.returncode == 2
    assert b"is not UTF-8" in done.stderr
    assert text_argument("é") == "é"
