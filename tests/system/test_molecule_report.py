"""examples/molecule_report.py on molecules whose figures are known."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("rdkit", reason="RDKit is in the extra molecules")
pytestmark = pytest.mark.long  # RDKit takes seconds to load
EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "molecule_report.py"


@pytest.fixture
def report():
    spec = importlib.util.spec_from_file_location("molecule_report", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_figures(report, tmp_path, capsys):
    molecules, training, document = tmp_path / "some.smi", tmp_path / "training.smi", tmp_path / "report.json"
    molecules.write_text("CCO\nOCC\nc1ccccc1\nC1CC\nC(C)(C)(C)(C)C\n\nCC\n")
    training.write_text("C(O)C ethanol\nCCC\n")
    assert report.main([str(molecules), "--training", str(training), "--json", str(document)]) == 0
    figures = json.loads(document.read_text())
    assert figures["molecules"] == 7
    assert figures["valid"] == 4 / 7  # a ring that stays open, an atom with five bonds, an empty line
    assert figures["novel"] == pytest.approx(2 / 3)  # ethanol, written in another way, is in the training set
    assert 0.3 < figures["internal diversity"] < 0.75
    assert "CharRNN, published" in capsys.readouterr().out


def test_one_molecule_has_no_diversity_and_copies_are_not_unique(report, tmp_path):
    figures = report.report(iter(["CCO"] * 1000), None)
    assert figures["internal diversity"] == pytest.approx(0)
    assert figures["unique@1000"] == 1 / 1000


def test_mistakes_are_one_line(report, tmp_path, capsys):
    (tmp_path / "texts.jsonl").write_text('{"text": "CC"}\nCC\n')
    (tmp_path / "empty.smi").write_text("")
    assert report.main([str(tmp_path / "texts.jsonl")]) == 2
    assert "texts.jsonl, line 2: not a JSON object" in capsys.readouterr().err
    assert report.main([str(tmp_path / "empty.smi")]) == 2
    assert "there are no molecules" in capsys.readouterr().err
    assert report.main([str(tmp_path / "gone.smi")]) == 2
