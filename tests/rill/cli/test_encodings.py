"""Terminals and pipes that are not UTF-8: what they cannot show is escaped, and nothing is a traceback."""

import io
import json
import sys

import pytest

from rill.cli.main import CLIENTS, main
from rill.programs import PROGRAMS

ENCODINGS = ("ascii", "cp1252", "cp437", "latin-1")


class Streams:
    """Standard output and standard error in an encoding."""

    def __init__(self, encoding, monkeypatch):
        self._encoding, self._raw = encoding, {name: io.BytesIO() for name in ("stdout", "stderr")}
        for name, raw in self._raw.items():
            monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, encoding, write_through=True))

    def taken(self, name):
        """What was written since the last time."""
        getattr(sys, name).flush()
        raw = self._raw[name]
        text = raw.getvalue().decode(self._encoding)
        raw.seek(0)
        raw.truncate()
        return text


def status_of(*arguments):
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as ended:
        return ended.code


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_help_is_shown_in_any_encoding(encoding, monkeypatch):
    streams = Streams(encoding, monkeypatch)
    assert status_of("--help") == 0
    for name in (*CLIENTS, *PROGRAMS):
        assert status_of(name, "--help") == 0, name
        text = streams.taken("stdout")
        assert "usage: rill" in text
        assert streams.taken("stderr") == ""


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_texts_are_shown_in_any_encoding(encoding, server, tmp_path, monkeypatch):
    """The model writes é, and the prompt has what no 8-bit encoding has."""
    streams = Streams(encoding, monkeypatch)
    target = ("--target", server.target)
    assert status_of("generate", "To be", "--max-chars", 300, "--seed", 7, *target) == 0
    shown = streams.taken("stdout")
    assert "é" in shown or r"\xe9" in shown
    assert status_of("generate", "To be", "--max-chars", 300, "--seed", 7, "--json", *target) == 0
    lines = [json.loads(line) for line in streams.taken("stdout").splitlines()]
    assert "é" in "".join(line["text"] for line in lines)
    text = tmp_path / "text"
    text.write_text("éa")
    assert status_of("score", text, "--per-char", *target) == 0
    assert r'"é"' in streams.taken("stdout").replace(r"\u00e9", "é")
    assert status_of("models", "--json", *target) == 0
    assert "é" in json.loads(streams.taken("stdout"))["models"][0]["vocabulary"]
    prompts, out = tmp_path / "漢.jsonl", tmp_path / "texts-漢.jsonl"
    prompts.write_text('{"prompt": "é"}\n')
    assert status_of("batch", prompts, "--out", out, "--max-chars", 20, *target) == 0
    assert r"texts-\u6f22.jsonl: 1 text" in streams.taken("stderr")
    assert status_of("generate", "漢", *target) == 1
    assert r"character '\u6f22' (U+6F22)" in streams.taken("stderr")
    assert status_of("train", "--corpus", tmp_path / "漢", "--out", tmp_path / "run") == 2
    assert r"\u6f22" in streams.taken("stderr")
