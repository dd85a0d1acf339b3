"""The output of `rill batch` on disk: whatever a killed run left, the next one continues with the whole lines."""

import json
import os
from pathlib import Path

import pytest

from rill.cli.batch.errors import OutputError
from rill.cli.batch.numbering import Numbering
from rill.cli.batch.output import BatchOutput, Fingerprint

RUN = Fingerprint("a" * 64, "b" * 64, "c" * 64)


def fields(line):
    return {"id": line, "seed": 7, "error": "no"} if line % 4 == 0 else {"id": line, "text": f"é\u2028\n{line}" * line}


def fill(out, lines, order, run=RUN):
    """Write a part with these lines."""
    with BatchOutput(out, Numbering(lines), run) as output:
        for line in order:
            output.add(line, fields(line))


def test_the_output_has_the_order_of_the_input(tmp_path):
    out = tmp_path / "texts.jsonl"
    with BatchOutput(out, Numbering(5), RUN) as output:
        for line in (3, 1, 5, 4, 2):
            assert output.is_wanted(line - 1)
            output.add(line, fields(line))
            assert not output.is_wanted(line - 1)
        assert not out.exists()
        output.finish()
    assert list(tmp_path.iterdir()) == [out]
    run = "aaaaaaaa-bbbbbbbb-cccccccc"
    expected = [{"line": line, "run": run, **fields(line)} for line in range(1, 6)]
    assert [json.loads(line) for line in out.read_bytes().split(b"\n")[:-1]] == expected
    with BatchOutput(out, Numbering(5), RUN) as output:
        assert (output.is_complete, output.done, output.refused) == (True, 5, 1)


def test_no_lines_at_all(tmp_path):
    out = tmp_path / "texts.jsonl"
    with BatchOutput(out, Numbering(0), RUN) as output:
        output.finish()
    assert out.read_bytes() == b""
    with BatchOutput(out, Numbering(0), RUN) as output:
        assert output.is_complete


def test_a_part_cut_anywhere_loses_at_most_the_torn_line(tmp_path):
    out = tmp_path / "texts.jsonl"
    order = [2, 4, 1, 3]
    fill(out, 4, order)
    whole = out.with_name("texts.jsonl.part").read_bytes()
    ends = [0, *(at + 1 for at, byte in enumerate(whole) if byte == ord("\n"))]
    for cut in range(len(whole) + 1):
        out.with_name("texts.jsonl.part").write_bytes(whole[:cut])
        out.unlink(missing_ok=True)
        with BatchOutput(out, Numbering(4), RUN) as output:
            kept = sum(end <= cut for end in ends) - 1
            assert (output.done, output.torn) == (kept, cut - ends[kept])
            assert [line for line in range(1, 5) if output.is_wanted(line - 1)] == sorted(order[kept:])
            assert output.refused == (4 in order[:kept])
            for line in range(1, 5):
                if output.is_wanted(line - 1):
                    output.add(line, fields(line))
            output.finish()
        lines = [json.loads(line)["line"] for line in out.read_bytes().splitlines()]
        assert lines == [1, 2, 3, 4]
        assert sorted(whole.splitlines()) == sorted(out.read_bytes().splitlines())


@pytest.mark.parametrize("place", ["texts.jsonl", "texts.jsonl.part"])
def test_files_that_are_not_of_this_run_are_left_alone(tmp_path, place):
    out = tmp_path / "texts.jsonl"
    fill(out, 3, [1, 2])
    ours = out.with_name("texts.jsonl.part").read_bytes()
    out.with_name("texts.jsonl.part").unlink()
    cases = [
        (Fingerprint("0" * 64, RUN.parameters, RUN.model), ours, "has texts of another input; remove it"),
        (Fingerprint(RUN.input, "0" * 64, RUN.model), ours, "has texts of other parameters; "),
        (Fingerprint(RUN.input, RUN.parameters, "0" * 64), ours, "has texts of another model; "),
        (Fingerprint("0" * 64, "0" * 64, RUN.model), ours, "another input, other parameters"),
        (RUN, ours.replace(b"-", b"+"), "has texts of"),
        (RUN, ours + b'{"prompt": "a"}\n', "line 3 was not written by rill batch"),
        (RUN, ours + b"\0\0\0\n", "line 3 was not written by rill batch"),
        (RUN, ours + b"[]\n", "line 3 was not written by rill batch"),
        (RUN, ours.replace(b'"line": 2', b'"line": 4'), "line 2 is damaged"),
        (RUN, ours.replace(b'"line": 2', b'"line": "2"'), "line 2 is damaged"),
        (RUN, ours.replace(b'"line": 2', b'"line": 2.0'), "line 2 is damaged"),
        (RUN, b"a text\n", "line 1 was not written by rill batch"),
    ]
    for run, content, message in cases:
        (tmp_path / place).write_bytes(content)
        with pytest.raises(OutputError, match=message.replace("+", r"\+")) as caught:
            BatchOutput(out, Numbering(3), run)
        assert str(caught.value).startswith(str(tmp_path / place))
        assert (tmp_path / place).read_bytes() == content
        assert [path.name for path in tmp_path.iterdir()] == [place]


@pytest.mark.parametrize("content", [b"", b'{"line": 1'])
def test_an_output_that_is_not_whole_is_an_error(tmp_path, content):
    (tmp_path / "out").write_bytes(content)
    with pytest.raises(OutputError, match="has only 0 of 3 lines; remove it"):
        BatchOutput(tmp_path / "out", Numbering(3), RUN)


def test_a_run_that_ended_before_its_part_was_removed(tmp_path):
    fill(tmp_path / "out", 2, [2, 1])
    part = (tmp_path / "out.part").read_bytes()
    with BatchOutput(tmp_path / "out", Numbering(2), RUN) as output:
        output.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "out.part").write_bytes(part)
    with BatchOutput(tmp_path / "out", Numbering(2), RUN) as output:
        assert output.is_complete
    assert not (tmp_path / "out.part").exists()


def test_two_runs_do_not_share_a_file(tmp_path):
    with BatchOutput(tmp_path / "out", Numbering(2), RUN) as output:
        output.add(1, fields(1))
        with pytest.raises(OutputError, match="another rill batch is writing"):
            BatchOutput(tmp_path / "out", Numbering(2), RUN)
        output.add(2, fields(2))
        output.finish()


def test_each_line_is_written_at_once_and_stays_when_the_disk_is_full(tmp_path, monkeypatch):
    sizes = []
    with BatchOutput(tmp_path / "out", Numbering(3), RUN) as output:
        for line in (1, 2, 3):
            output.add(line, fields(line))
            sizes.append(len((tmp_path / "out.part").read_bytes().splitlines()))

        def full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            output.finish()
    assert sizes == [1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["out.part"]


def test_a_part_that_an_editor_has_saved_is_continued(tmp_path):
    """With a byte order mark, line ends of Windows, and an empty line at the end; the output has none of them."""
    plain, edited = tmp_path / "plain.jsonl", tmp_path / "edited.jsonl"
    for out in (plain, edited):
        fill(out, 4, [2, 1])
        if out == edited:
            part = out.with_name("edited.jsonl.part")
            part.write_bytes(b"\xef\xbb\xbf" + part.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
        with BatchOutput(out, Numbering(4), RUN) as output:
            assert (output.done, output.torn) == (2, 0)
            for line in (3, 4):
                output.add(line, fields(line))
            output.finish()
    assert edited.read_bytes() == plain.read_bytes()
    edited.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes().replace(b"\n", b"\r\n"))
    with BatchOutput(edited, Numbering(4), RUN) as output:
        assert output.is_complete
    part = tmp_path / "other.jsonl.part"
    part.write_text(plain.read_text(), encoding="utf-16")
    with pytest.raises(OutputError, match="was not written by rill batch"):
        BatchOutput(tmp_path / "other.jsonl", Numbering(4), RUN)


def test_a_pipe_gets_each_line_as_soon_as_its_turn_has_come():
    reader, writer = os.pipe()
    with open(reader, "rb") as lines, BatchOutput(Path(f"/dev/fd/{writer}"), Numbering(4), RUN) as output:
        os.close(writer)  # the output has a descriptor of its own
        assert not output.is_resumable
        for line, sent in ((2, []), (1, [1, 2]), (4, []), (3, [3, 4])):
            output.add(line, fields(line))
            for number in sent:
                written = {"line": number, "run": str(RUN), **fields(number)}
                assert json.loads(lines.readline()) == written
        output.finish()
    assert not output.is_complete
