"""Every file in examples/ runs as its docstring says."""

import ast
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import outside
import pytest
from gateways import run_gateway
from random_models import make_run, save_bundle
from servers import ROOT, run_server

from rill import Client

EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


def run_example(name: str, *arguments: object, python: str = sys.executable, timeout: float = 60) -> str:
    """Run `python examples/NAME ARGUMENTS`; return what it printed."""
    done = subprocess.run(
        [python, "-W", "error", f"examples/{name}", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_docstring_opens_with_what_it_does_and_the_command(name):
    docstring = ast.get_docstring(ast.parse((ROOT / "examples" / name).read_text())) or ""
    subject, blank, command, *_ = docstring.splitlines()
    assert subject.endswith(".")
    assert not blank
    assert command.startswith(f"    python examples/{name} ")


def test_every_example_is_run_here():
    source = Path(__file__).read_text()
    assert [name for name in EXAMPLES if f'"{name}"' not in source] == []


def test_client(server):
    assert len(run_example("client.py", server.target, "ROMEO")) == 401  # and a newline


def test_chat_async(server):
    printed = run_example("chat_async.py", server.target, "ROMEO", "JULIET")
    assert printed.startswith("> ROMEO   (-")
    assert "\n> JULIET   (-" in printed


def test_resume_and_fork(server):
    printed = run_example("resume_and_fork.py", server.target, "ROMEO")
    assert "the same text as without the interruption: True\n" in printed
    continued, fork = (line[len("continued: ") :] for line in printed.splitlines() if line[:4] in ("cont", "a fo"))
    assert continued != fork


def test_constrained(tmp_path):
    """Its model has digits, braces and quotes."""
    save_bundle(make_run(("\n", *map(chr, range(32, 127)))), tmp_path / "ascii")
    with run_server(tmp_path / "ascii") as ascii_server:
        *dates, answer, person, resumed = run_example("constrained.py", ascii_server.target).splitlines()
    assert len(dates) == 3
    assert all(re.fullmatch(r"date: (19|20)\d\d-[01]\d-[0-3]\d", date) for date in dates)
    assert answer in ("answer: yes", "answer: no", "answer: that depends")
    assert person.startswith("person: {'name': ")
    assert resumed == f"in two calls: {dates[0].removeprefix('date: ')}"


def test_score(server):
    total, *lines = run_example("score.py", server.target).splitlines()
    assert total.startswith("19 characters: ")
    assert len(lines) == 5


def test_grpc_raw(server):
    first, *_, last = run_example("grpc_raw.py", server.target, "ROMEO").splitlines()
    assert first.startswith("tiny: gru, 57 symbols, onnxruntime-")
    assert last.startswith("200 characters in ")


def test_openai_client(server):
    environment = outside.python("openai", outside.OPENAI)
    with run_gateway(server.target) as gateway:
        printed = run_example("openai_client.py", gateway.url, "ROMEO", python=environment.path("python"))
    with server.client() as client:
        text = "".join(client.generate("ROMEO", max_chars=400, temperature=0.7, seed=7))
    assert printed == f"{text}\n[the second half again: {text[200:240]!r}…]\n"


@pytest.mark.long
@pytest.mark.timeout(300)  # pip takes longer beside other programs
def test_langchain_completion(server):
    environment = outside.python("langchain", outside.LANGCHAIN)
    with run_gateway(server.target) as gateway:
        printed = run_example(
            "langchain_completion.py", gateway.url, "ROMEO", "JULIA", python=environment.path("python")
        )
    first, second, text = printed.split("\n", 2)
    with server.client() as client:
        line = "".join(client.generate("ROMEO\n", max_chars=200, temperature=0.7, seed=7, stop="\n"))
        assert text == "".join(client.generate("ROMEO\n", max_chars=200, temperature=0.7, seed=7)) + "\n"
    assert first == f"ROMEO {line}"
    assert second.startswith("JULIA ")


def test_portable_onnx(tiny_folder):
    assert len(run_example("portable_onnx.py", tiny_folder / "model.onnx", "ROMEO")) == 206  # the prompt and a newline
    assert len(run_example("portable_onnx.py", tiny_folder / "model.onnx", "")) == 201
    tree = ast.parse((ROOT / "examples" / "portable_onnx.py").read_text())
    imported = {name.name for node in tree.body if isinstance(node, ast.Import) for name in node.names}
    assert imported == {"json", "sys", "numpy", "onnxruntime"}


@pytest.mark.long
def test_molecule_report(tmp_path):
    pytest.importorskip("rdkit", reason="RDKit is in the extra molecules")
    (tmp_path / "some.smi").write_text("CCO\nOCC\nC1CC\n")
    assert "valid                   0.6667" in run_example("molecule_report.py", tmp_path / "some.smi")


def test_foreign_model(tmp_path, monkeypatch, capsys, unverified):
    """In this process, which has loaded PyTorch already."""
    monkeypatch.setattr(sys, "argv", ["foreign_model.py", str(tmp_path)])
    runpy.run_path(str(ROOT / "examples" / "foreign_model.py"), run_name="__main__")
    assert capsys.readouterr().out.endswith(f"exported: {tmp_path / 'bundles' / 'poet'}\n")
    with run_server(tmp_path / "bundles" / "poet") as poet, Client(poet.target) as client:
        assert len("".join(client.generate("the ", max_chars=50, seed=1))) == 50


@pytest.mark.long
def test_foreign_molecules(tmp_path, monkeypatch, capsys, unverified):
    """Each checkpoint is served, and begins and ends texts by itself."""
    monkeypatch.setattr(sys, "argv", ["foreign_molecules.py", str(tmp_path)])
    runpy.run_path(str(ROOT / "examples" / "foreign_molecules.py"), run_name="__main__")
    names = ("reinvent", "moses", "char-rnn")
    folders = [tmp_path / "bundles" / name for name in names]
    assert capsys.readouterr().out == "".join(f"exported: {folder}\n" for folder in folders)
    with run_server(*folders) as server, Client(server.target) as client:
        for name in names:
            texts = {"".join(client.generate(model=name, max_chars=60, seed=seed)) for seed in range(20)}
            assert len(texts & {"CCO", "c1ccccc1Cl", "CC(=O)NCBr", "c1cc[nH]c1", "CCN(C)C", "OCC=O"}) >= 3


@pytest.mark.long
def test_log_anomalies(tmp_path):
    printed = run_example("log_anomalies.py", tmp_path / "log", timeout=300).splitlines()
    assert len(printed) == 11
    assert all("GET" in line for line in printed[:5])
    found = re.fullmatch(r"AUC (\d\.\d{4}): 8 attacks among 308 lines", printed[-1])
    assert found
    assert float(found[1]) > 0.98
