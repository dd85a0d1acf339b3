"""`rill score --per-line`: files and pipes, whole and half lines, what is no text, and every way to end."""

import json
import os
import signal
import subprocess
import sys

import pytest
from servers import ROOT

from rill import Client
from rill.cli.main import main
from rill.cli.score_lines import _shown
from rill.text_lines import LONGEST, Line, _lines, lines_of

TEXT = "To be\nor not\r\n\nthat is the question"


@pytest.fixture
def rill(server, capsys):
    def run(*arguments):
        """Return exit status, lines of output, lines of errors."""
        try:
            status = main(["score", *map(str, arguments), "--per-line", "--target", server.target])
        except SystemExit as exited:
            status = exited.code
        out, errors = capsys.readouterr()
        return status, out.splitlines(), errors.splitlines()

    return run


@pytest.fixture
def log(tmp_path):
    def write(data):
        path = tmp_path / "app.log"
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write


@pytest.fixture
def process(server):
    """Start the command with pipes; what still runs at the end is killed."""
    started = []

    def start(*arguments):
        command = [sys.executable, "-m", "rill", "score", "-", "--per-line", "--target", server.target, *arguments]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        started.append(subprocess.Popen(command, cwd=ROOT, **pipes))
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.wait()
        for pipe in (each.stdin, each.stdout, each.stderr):
            pipe.close()


def scores_of(server, *lines):
    with Client(server.target) as client:
        return list(client.score_lines(lines))


def test_each_line_has_its_bits(rill, log, server):
    scores = scores_of(server, "To be", "or not", "", "that is the question")
    assert rill(log(TEXT)) == (
        0,
        [f"{score.line}\t{score.bits_per_symbol:.4f}\t{score.text}" for score in scores],
        [],
    )
    status, out, errors = rill(log(TEXT), "--json")
    assert (status, errors) == (0, [])
    assert [json.loads(line) for line in out] == [
        {
            "line": score.line,
            "symbols": len(score.text),
            "logprob": score.logprob,
            "bits_per_symbol": score.bits_per_symbol,
            "text": score.text,
        }
        for score in scores
    ]


def test_only_lines_above_and_the_worst_at_the_end(rill, log, server):
    lines = ["to be", "xqzJ", "or not to be", "", "KKwwZ", "to be", "xqzJ"]
    bits = [score.bits_per_symbol for score in scores_of(server, *lines)]
    middle = sorted(bits)[3]
    path = log("\n".join(lines))
    status, out, _ = rill(path, "--above", middle)
    assert [int(line.split("\t")[0]) - 1 for line in out] == [at for at, value in enumerate(bits) if value > middle]
    ranked = sorted(range(len(lines)), key=lambda at: (-bits[at], at))
    for count in (1, 3, 100):
        status, out, _ = rill(path, "--top", count)
        assert (status, [int(line.split("\t")[0]) - 1 for line in out]) == (0, ranked[:count])
    status, out, _ = rill(path, "--top", 100, "--above", middle)
    assert [int(line.split("\t")[0]) - 1 for line in out] == [at for at in ranked if bits[at] > middle]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a漢", "character '漢' (U+6F22) at position 1 is not in the model's vocabulary"),
        (b"ab\xffc", "is not UTF-8: byte 0xff at position 2"),
        (b"\0", "character '\\x00' (U+0000) at position 0 is not in the model's vocabulary"),
    ],
)
def test_a_line_that_cannot_be_scored_is_named_and_ends_it_unless_skipped(rill, log, line, reason):
    data = line if isinstance(line, bytes) else line.encode()
    path = log(b"one\n" + data + b"\ntwo\n")
    status, out, errors = rill(path)
    assert (status, [row.split("\t")[2] for row in out]) == (1, ["one"])
    assert errors == [f"error: {path}, line 2: {reason}; --skip goes on after such lines"]
    status, out, errors = rill(path, "--skip")
    assert (status, [row.split("\t")[2] for row in out]) == (0, ["one", "two"])
    assert errors == [f"{path}, line 2: {reason}; skipped"]
    status, out, errors = rill(path, "--skip", "--json", "--above", "-1")
    assert (status, errors) == (0, [])
    assert json.loads(out[1]) == {"line": 2, "text": data.decode(errors="replace"), "error": reason}
    status, out, errors = rill(path, "--top", 5)
    assert (status, [row.split("\t")[2] for row in out], len(errors)) == (1, ["one"], 1)


def test_an_escape_in_a_log_does_not_reach_the_terminal():
    assert _shown("a\x1b[2J\u202e\tb漢") == "a\\x1b[2J\\u202e\\tb漢"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--per-line", "--per-char"], "--per-char and --per-line exclude each other"),
        (["--above", "1"], "--above goes with --per-line"),
        (["--top", "1"], "--top goes with --per-line"),
        (["--no-end"], "--no-end goes with --per-line"),
        (["--skip"], "--skip goes with --per-line"),
        (["--per-line", "--above", "nan"], "argument --above: must be a number, not 'nan'"),
        (["--per-line", "--top", "0"], "argument --top: must be at least 1, not '0'"),
    ],
)
def test_flags_that_do_not_go_together(flags, message, capsys):
    try:
        status = main(["score", "x", *flags, "--target", "127.0.0.1:1"])
    except SystemExit as exited:
        status = exited.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_a_file_that_cannot_be_read(rill, tmp_path):
    assert rill(tmp_path / "none") == (2, [], [f"error: cannot read {tmp_path / 'none'}: No such file or directory"])
    assert rill(tmp_path) == (2, [], [f"error: cannot read {tmp_path}: Is a directory"])


def test_a_line_is_printed_as_soon_as_its_end_is_there(process):
    running = process()
    for sent, shown in [(b"one\n", b"one"), (b"tw", None), (b"o\r\nthr", b"two"), (b"ee\n\n", b"three"), (b"", b"")]:
        running.stdin.write(sent)
        running.stdin.flush()
        if shown is not None:
            assert running.stdout.readline().rstrip(b"\n").split(b"\t")[2] == shown
    running.stdin.write(b"last")
    running.stdin.close()
    assert running.stdout.read().endswith(b"\tlast\n")
    assert (running.wait(), running.stderr.read()) == (0, b"")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_endless_pipe_is_ended_from_outside_and_shows_the_worst(process, number, status):
    running = process("--top", "2", "--skip")
    running.stdin.write("one\ntwo\nx漢\n".encode())
    running.stdin.flush()
    assert b"line 3" in running.stderr.readline()
    running.send_signal(number)
    assert running.wait(timeout=30) == status
    assert {line.split(b"\t")[0] for line in running.stdout.read().splitlines()} == {b"1", b"2"}
    assert b"Traceback" not in running.stderr.read()


def test_a_reader_that_has_had_enough_ends_it(process):
    running = process()
    running.stdin.write(b"one\n")
    running.stdin.flush()
    running.stdout.readline()
    running.stdout.close()
    running.stdin.write(b"two\n")
    running.stdin.flush()
    assert running.wait(timeout=30) == 0
    assert running.stderr.read() == b""


def lines_in(*chunks):
    return list(_lines(iter([*chunks, b""])))


def test_lines_are_cut_where_they_end_however_they_arrive():
    text = "a\r\nb\rc\n\n漢字\nd"
    expected = [Line(line) for line in ("a", "b", "c", "", "漢字", "d")]
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        data = text.encode(encoding)
        for size in (1, 2, 3, 100):
            assert lines_in(*(data[at : at + size] for at in range(0, len(data), size))) == expected
    assert lines_in() == []
    assert lines_in(b"\n") == [Line("")]
    assert lines_in(b"a\n") == [Line("a")]
    assert lines_in(b"\xef") == [Line("\ufffd", "is not UTF-8: byte 0xef at position 0")]


def test_a_line_without_end_is_not_kept():
    chunk = b"x" * 65_536
    whole = LONGEST // len(chunk) + 2
    (long, after) = _lines(iter([*[chunk] * whole, b"\nafter\n", b""]))
    length = whole * len(chunk)
    assert long == Line("", f"has {length:,} characters; {LONGEST:,} are the most that is read of a line")
    assert after == Line("after")


def test_utf16_that_is_damaged_is_an_error(tmp_path):
    (tmp_path / "log").write_bytes("ab\n".encode("utf-16") + b"\x00\xd8\n")
    with pytest.raises(ValueError, match="is not UTF-16"):
        list(lines_of(str(tmp_path / "log")))


def test_a_pipe_that_another_program_made_non_blocking_is_waited_for():
    read, write = os.pipe()
    os.set_blocking(read, False)
    with (
        os.fdopen(write, "wb", buffering=0) as writer,
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from rill.text_lines import lines_of\nfor line in lines_of('-'): print(line.text, flush=True)",
            ],
            cwd=ROOT,
            stdin=read,
            stdout=subprocess.PIPE,
        ) as running,
    ):
        os.close(read)
        for line in (b"one", b"two"):
            writer.write(line + b"\n")
            assert running.stdout.readline() == line + b"\n"
        writer.close()
    assert running.returncode == 0
