"""`rill batch --samples`, `n`, `--unique`, log-probabilities, and the forms of the output, with real servers."""

import json
import math
import os
import signal
import subprocess
import sys

import httpx
import pyarrow.parquet
import pytest
from gateways import run_gateway
from hypothesis import given
from hypothesis import strategies as st
from random_models import MOLECULES
from servers import ROOT

from rill.cli.batch.numbering import MOST_TEXTS, Numbering
from rill.cli.batch.unique import SeenTexts
from rill.cli.main import main
from rill.client.seeds import seed_of

UNBROKEN = ["--stop", "\n", "--max-chars", "12"]  # texts of the tiny model, which knows "\n"


def lines_of(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def without_run(lines):
    return [{key: value for key, value in line.items() if key != "run"} for line in lines]


# ---- samples and n


def test_samples_are_the_lines_of_a_file_with_their_prompt(tmp_path, server):
    prompts, outs = tmp_path / "prompts.jsonl", [tmp_path / name for name in ("lines", "samples", "again")]
    prompts.write_text('{"prompt": "ab"}\n' * 30)
    flags = ["--target", server.target, "--seed", "7", "--max-chars", "15", "--temperature", "0.8"]
    assert main(["batch", str(prompts), "--out", str(outs[0]), *flags]) == 0
    samples = ["batch", "--samples", "30", "--prompt", "ab", *flags, "--out"]
    assert main([*samples, str(outs[1])]) == 0
    assert main([*samples, str(outs[2]), "--streams", "2"]) == 0
    assert outs[1].read_bytes() == outs[2].read_bytes()
    assert without_run(lines_of(outs[0])) == without_run(lines_of(outs[1]))
    lines = lines_of(outs[1])
    assert [line["seed"] for line in lines] == [seed_of(7, number) for number in range(1, 31)]
    assert (lines[4]["line"], lines[4]["id"]) == (5, 5)
    with server.client() as client:  # also what OpenAI's `n` has with the seed 7: sample j of it is line j
        made = [client.generate("ab", seed=line["seed"], max_chars=15, temperature=0.8) for line in lines[:5]]
        assert ["".join(text) for text in made] == [line["text"] for line in lines[:5]]


def test_the_samples_of_a_line_have_an_index(tmp_path, server):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    given = [
        {"prompt": "a", "n": 3, "id": "x"},
        {"prompt": "b"},
        {"prompt": "a", "n": 2, "seed": 7},
        {"prompt": "漢", "n": 2},
    ]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in given))
    flags = ["--target", server.target, "--seed", "5", "--max-chars", "9"]
    assert main(["batch", str(prompts), "--out", str(out), *flags]) == 1
    lines = lines_of(out)
    assert [(line["line"], line.get("index"), line["id"]) for line in lines] == [
        (1, 0, "x"), (1, 1, "x"), (1, 2, "x"), (2, None, 2), (3, 0, 3), (3, 1, 3), (4, 0, 4), (4, 1, 4)
    ]  # fmt: skip
    own = seed_of(5, 1)
    seeds = [own, seed_of(own, 1), seed_of(own, 2), seed_of(5, 2), 7, seed_of(7, 1)]
    assert [line["seed"] for line in lines[:6]] == seeds
    assert all("error" in line for line in lines[6:])
    with server.client() as client:
        for line in lines[:6]:
            prompt = given[line["line"] - 1]["prompt"]
            assert "".join(client.generate(prompt, seed=line["seed"], max_chars=9)) == line["text"]
    assert main(["batch", str(prompts), "--out", str(tmp_path / "all"), "--n", "2", *flags]) == 1
    assert [(line["line"], line.get("index")) for line in lines_of(tmp_path / "all")][3:5] == [(2, 0), (2, 1)]


@pytest.mark.long
def test_samples_are_the_choices_of_a_request_over_http(tmp_path, server):
    prompts, drawn, made = tmp_path / "prompts", tmp_path / "drawn", tmp_path / "made"
    flags = ["--target", server.target, "--max-chars", "12"]
    prompts.write_text('{"prompt": "the ", "n": 5, "seed": 7}\n')
    assert main(["batch", str(prompts), "--out", str(made), *flags]) == 0
    assert main(["batch", "--samples", "4", "--prompt", "the ", "--seed", "7", "--out", str(drawn), *flags]) == 0
    with run_gateway(server.target) as gateway:
        request = {"model": "tiny", "prompt": "the ", "n": 5, "best_of": 5, "seed": 7, "max_tokens": 12}
        answer = httpx.post(f"{gateway.url}/v1/completions", json=request, trust_env=False).json()
    choices = [choice["text"] for choice in answer["choices"]]
    assert texts_of(made) == choices
    assert texts_of(drawn) == choices[1:]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "error: give either PROMPTS.jsonl or --samples N\n"),
        (["PROMPTS", "--samples", "3"], "error: give either PROMPTS.jsonl or --samples N\n"),
        (["PROMPTS", "--prompt", "a"], "error: --prompt goes with --samples; the lines of an input have theirs\n"),
        (["--samples", "3", "--n", "2"], "error: --n goes with PROMPTS.jsonl; --samples says how many texts"),
        (["PROMPTS", "--n", "0"], "error: --n must be from 1 to 1000000, not 0\n"),
        (["--samples", "0"], "argument --samples: must be from 1 to 100,000,000, not 0\n"),
        (["--samples", "1e6"], "argument --samples: invalid count value: '1e6'\n"),
        (["--samples", "3", "--prompt", "漢"], "error: prompt: character '漢' (U+6F22) at position 0 is not in"),
        (["--samples", "3", "--logit-bias", "漢=1"], "'漢'"),
        (["BIASED"], '"logit_bias": "Cl" is not a symbol of tiny\n'),
        (["--samples", "3", "--out", "OUT.smi"], "error: OUT.smi has a text a line, and the model may write"),
        (["PROMPTS", "--out", "OUT.smi", "--stop", "\n"], "PROMPTS, line 2: OUT.smi has a text a line"),
        (["--samples", "3", "--out", "OUT.smi", "--logprob"], "error: --logprob: OUT.smi has texts alone; choose"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_sentence_and_leaves_nothing(tmp_path, server, capsys, flags, message):
    prompts = tmp_path / "PROMPTS"
    prompts.write_text('{"prompt": "a"}\n{"prompt": "b", "stop": "\\n\\n"}\n')
    (tmp_path / "BIASED").write_text('{"prompt": "a"}\n{"prompt": "b", "logit_bias": {"Cl": 1}}\n')
    places = [str(tmp_path / flag) if flag.isupper() or flag.startswith("OUT") else flag for flag in flags]
    out = [] if "--out" in flags else ["--out", str(tmp_path / "OUT")]
    try:
        status = main(["batch", *places, *out, "--target", server.target])
    except SystemExit as error:  # argparse's
        status = error.code
    assert status == 2
    said = capsys.readouterr().err.replace(f"{tmp_path}/", "")
    assert message in said
    assert said.splitlines()[-1].count(". ") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"PROMPTS", "BIASED"}


def test_a_run_has_so_many_texts_at_most(tmp_path, capsys, server):
    prompts = tmp_path / "prompts"
    prompts.write_text('{"prompt": "a", "n": 1000000}\n' * (MOST_TEXTS // 1_000_000 + 1))
    assert main(["batch", str(prompts), "--out", str(tmp_path / "out"), "--target", server.target]) == 2
    assert (
        capsys.readouterr().err == f"error: {prompts}, line 101: a run has at most 100,000,000 texts; split the input\n"
    )


# ---- unique texts


@pytest.mark.parametrize("name", ["x.jsonl", "x.smi", "x.parquet"])
def test_unique_keeps_the_first_of_equal_texts(tmp_path, server, capsys, name):
    flags = ["batch", "--samples", "60", "--max-chars", "1", "--stop", "\n", "--target", server.target]
    assert main([*flags, "--out", str(tmp_path / "all.jsonl")]) == 0
    out = tmp_path / name
    rill = [*flags, "--out", str(out), "--unique"]
    assert main([*rill, "--streams", "7"]) == 0
    every = [line["text"] for line in lines_of(tmp_path / "all.jsonl")]
    expected = list(dict.fromkeys(every))
    assert len(expected) < 50
    assert texts_of(out) == expected
    said = capsys.readouterr().err.splitlines()[-1]
    counted = f"{len(expected)} texts, {60 - len(expected)} dropped (not unique)"
    assert said.startswith(f"{out}: {counted}; ")
    assert main(rill) == 0
    assert capsys.readouterr().err == f"{out} is complete: {counted}\n"
    assert main([*flags, "--out", str(out)]) == 2
    assert capsys.readouterr().err == (
        f"error: {out} has texts of other parameters; remove it, or choose another --out\n"
    )


def test_unique_over_a_pipe(tmp_path, server):
    flags = ["--samples", "60", "--max-chars", "1", "--unique", "--target", server.target]
    process = subprocess.run(
        [sys.executable, "-m", "rill", "batch", "--out", "-", *flags], cwd=ROOT, capture_output=True, check=True
    )
    texts = [json.loads(line)["text"] for line in process.stdout.splitlines()]
    assert len(set(texts)) == len(texts) < 60
    assert b"dropped (not unique)" in process.stderr


@given(st.lists(st.text("ab", max_size=3), max_size=60))
def test_seen_texts_are_a_set(texts):
    seen, known = SeenTexts(len(texts)), set()
    for text in texts:
        assert seen.add(text) == (text not in known)
        known.add(text)


@given(st.lists(st.integers(1, 4), max_size=20))
def test_texts_are_numbered_line_by_line(samples):
    numbering = Numbering()
    for count in samples:
        numbering.add_line(count)
    places = [(line, index) for line, count in enumerate(samples, 1) for index in range(count)]
    assert [numbering.number(*place) for place in places] == list(range(len(places)))
    assert (numbering.lines, numbering.texts) == (len(samples), len(places))
    others = [(0, 0), (len(samples) + 1, 0), (1, -1), (1, 4), (True, 0), (1.0, 0), ("1", 0), (1, None)]
    assert not any(numbering.number(*place) is not None for place in others if place not in places or place[0] is True)


# ---- log-probabilities


def test_the_logprob_is_that_of_the_model_itself(tmp_path, server):
    flags = ["--samples", "5", "--prompt", "ab", "--max-chars", "20", "--temperature", "0.5", "--top-k", "5"]
    out, without = tmp_path / "out", tmp_path / "without"
    assert main(["batch", *flags, "--out", str(out), "--target", server.target]) == 0
    assert main(["batch", *flags, "--out", str(without), "--target", server.target, "--no-logprob"]) == 0
    lines = lines_of(out)
    assert [line["text"] for line in lines] == [line["text"] for line in lines_of(without)]
    assert not any("logprob" in line for line in lines_of(without))
    with server.client() as client:
        for line in lines:
            scores = [
                score for message in client.score("ab" + line["text"], as_prompt=True) for score in message.logprobs
            ]
            assert line["logprob"] == pytest.approx(math.fsum(scores[2:]), abs=1e-4)


# ---- forms


def texts_of(out):
    match out.suffix:
        case ".smi":
            return out.read_text().splitlines()
        case ".parquet":
            return pyarrow.parquet.read_table(out)["text"].to_pylist()
        case _:
            return [line["text"] for line in lines_of(out)]


def test_a_table_has_a_row_for_each_text(tmp_path, server):
    prompts, out, lines = tmp_path / "prompts", tmp_path / "x.PARQUET", tmp_path / "lines"
    prompts.write_text(
        '{"prompt": "a", "n": 2, "id": "é"}\n{"prompt": "漢", "seed": 18446744073709551615}\n{"prompt": ""}\n'
    )
    for path in (out, lines):
        assert main(["batch", str(prompts), "--out", str(path), "--target", server.target, "--max-chars", "9"]) == 1
    table = pyarrow.parquet.read_table(out)
    expected = lines_of(lines)
    names = ["line", "index", "id", "seed", "text", "chars", "finish_reason", "matches", "logprob", "error"]
    assert table.column_names == names
    for row, line in zip(table.to_pylist(), expected, strict=True):
        assert row == dict.fromkeys(table.column_names) | {
            **{key: value for key, value in line.items() if key != "run"}, "id": str(line["id"])
        }  # fmt: skip
    assert pyarrow.parquet.read_metadata(out).metadata[b"rill.run"].decode() == expected[0]["run"]


def test_a_text_a_line(tmp_path, server, capsys):
    prompts, out = tmp_path / "prompts", tmp_path / "x.smi"
    prompts.write_text('{"prompt": "a"}\n{"prompt": "漢"}\n{"prompt": "b", "stop": "\\n", "max_chars": 3}\n')
    rill = ["batch", str(prompts), "--out", str(out), "--target", server.target, *UNBROKEN]
    assert main(rill) == 1
    assert len(out.read_bytes().split(b"\n")) == 3
    assert "1 refused (left out)" in capsys.readouterr().err
    assert main(rill) == 1
    assert capsys.readouterr().err == f"{out} is complete: 2 texts, 1 refused (left out)\n"
    out.write_text("C\n")
    assert main(rill) == 2
    assert capsys.readouterr().err == (
        f"error: {out} has changed since rill batch wrote it; remove it, or choose another --out\n"
    )
    (tmp_path / "x.smi.run").unlink()
    assert main(rill) == 2
    assert "was not written by rill batch, or x.smi.run is lost; remove it" in capsys.readouterr().err


def test_forms_that_need_more(tmp_path, server, capsys, monkeypatch):
    rill = ["batch", "--samples", "1", "--target", server.target, "--out"]
    (tmp_path / "x.parquet").write_text("no table")
    assert main([*rill, str(tmp_path / "x.parquet")]) == 2
    assert "x.parquet was not written by rill batch; remove it" in capsys.readouterr().err
    os.mkfifo(tmp_path / "pipe.parquet")
    assert main([*rill, str(tmp_path / "pipe.parquet")]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/pipe.parquet is not a regular file, which the form of Parquet needs\n"
    )
    monkeypatch.setattr("rill.cli.batch.forms.find_spec", lambda name: None)
    assert main([*rill, str(tmp_path / "y.parquet")]) == 2
    assert capsys.readouterr().err == (
        f"error: --out {tmp_path}/y.parquet needs the package 'pyarrow'; "
        "install it with: pip install 'rill-text[parquet]'\n"
    )


# `rill`, which ends by kill -9 where the fourth argument says: after so many texts, in the middle of the next one, or
# while the complete output is written.
DOOMED = """
import os, signal, sys
from rill.cli.main import main
from rill.cli.batch import forms, output

texts, torn, at = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

add, write = output.BatchOutput.add, output.BatchOutput._write

def add_or_die(self, line, fields):
    global texts
    if at == "adding" and texts == 0:
        self._file.write(b'{"line": 1, "run": "'[:torn])
        self._file.flush()
        die()
    texts -= at == "adding"
    add(self, line, fields)

def write_or_die(self, text, writer):
    global texts
    if at == "writing" and texts == 0:
        die()
    texts -= at == "writing"
    write(self, text, writer)

output.BatchOutput.add, output.BatchOutput._write = add_or_die, write_or_die
if at == "renamed":
    unlink = output.Path.unlink
    output.Path.unlink = lambda path, **how: die() if path.suffix == ".part" else unlink(path, **how)
for form in forms.JsonLines, forms.TextLines, forms.ParquetRows:
    if at == "closed":
        form.close = lambda self, close=form.close: (close(self), die())
sys.exit(main(sys.argv[4:]))
"""


FORMS = "jsonl", "smi", "parquet"
SOME = [(7, 9, "adding"), (30, 0, "writing"), (0, 0, "closed"), (0, 0, "renamed")]
MANY = [(0, 9, "adding"), (7, 0, "adding"), (20, 12, "adding"), (0, 0, "writing"), *SOME[1:]]


@pytest.mark.parametrize(
    ("name", "moments"),
    [("x.parquet", SOME), *(pytest.param(f"x.{form}", MANY, marks=pytest.mark.long) for form in FORMS)],
)
def test_kills_leave_the_bytes_of_an_uninterrupted_run(tmp_path, server, name, moments):
    prompts = tmp_path / "prompts"
    prompts.write_text("".join(json.dumps({"prompt": "ab"[: n % 3], "n": 1 + n % 4}) + "\n" for n in range(24)))
    (tmp_path / "whole").mkdir()
    out, whole = tmp_path / name, tmp_path / "whole" / name
    rill = ["batch", prompts, "--target", server.target, "--streams", 5, "--unique", "--max-chars", 1, "--stop", "\n"]
    assert main([*map(str, rill), "--out", str(whole)]) == 0
    for moment in moments:
        command = [sys.executable, "-c", DOOMED, *moment, *rill, "--out", out]
        process = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, check=False)
        assert process.returncode == -signal.SIGKILL, process.stderr
        assert out.exists() == (moment[2] == "renamed")
    assert main([*map(str, rill), "--out", str(out)]) == 0
    assert out.read_bytes() == whole.read_bytes()
    beside = {"x.smi.run"} if name == "x.smi" else set()
    assert {path.name for path in tmp_path.iterdir()} == {"prompts", "whole", name, *beside}


# ---- models with symbols of several characters, a start and an end


def test_molecules_count_symbols_and_end_by_themselves(tmp_path, molecule_server):
    flags = ["--samples", "20", "--seed", "3", "--target", molecule_server.target, "--max-chars", "30"]
    out, smiles = tmp_path / "x.jsonl", tmp_path / "x.smi"
    for path in (out, smiles):  # no line breaks in the vocabulary
        assert main(["batch", *flags, "--logit-bias", "Cl=1", "--out", str(path)]) == 0
    lines = lines_of(out)
    assert texts_of(smiles) == [line["text"] for line in lines]
    cut = [MOLECULES.decode(MOLECULES.encode(line["text"])) for line in lines]
    assert cut == [line["text"] for line in lines]
    assert [line["chars"] for line in lines] == [len(MOLECULES.encode(line["text"])) for line in lines]
    assert any(line["chars"] < len(line["text"]) for line in lines)
    assert {line["finish_reason"] for line in lines} == {"STOP", "LENGTH"}
    assert all((line["finish_reason"] == "LENGTH") == (line["chars"] == 30) for line in lines)
    with molecule_server.client() as client:
        for line in lines[:6]:
            text = client.generate("", seed=line["seed"], max_chars=30, logit_bias={"Cl": 1})
            assert "".join(text) == line["text"]
            scores = [score for message in client.score(line["text"], as_prompt=True) for score in message.logprobs]
            assert line["logprob"] == pytest.approx(math.fsum(scores), abs=1e-4)  # without the end
