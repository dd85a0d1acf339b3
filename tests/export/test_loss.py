"""The loss of int8: measured on the held-out text or a generated one, and refused if it is large."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from random_models import SENTENCES, make_run

from rill.bundle import MANIFEST, read_bundle
from rill.export.command import main
from rill.export.errors import LossError
from rill.export.graphs.build import build_bundle
from rill.export.parity import int8_loss as measuring
from rill.export.parity.compare import session
from rill.export.parity.int8_loss import Loss, measure_loss
from rill.export.pipeline import export_loaded
from rill.train.command import main as train
from rill.train.record.run import load_run
from rill.train.text.split import read_texts

pytestmark = pytest.mark.usefixtures("quick_training")
WRITTEN = "a text by the fp32 model: there is no validation text"


TINY = "--hidden 16 --batch 4 --window 16 --steps 100 --learning-rate 0.02 --warmup 5 --threads 1 --device cpu"


def trained(folder, corpus, options=""):
    arguments = f"{TINY} --validation 0.3 {options}".split()
    assert train(["--corpus", str(corpus), "--out", str(folder), *arguments]) == 0
    return folder


@pytest.fixture(scope="module")
def run_folder(sentences, tmp_path_factory):
    """A GRU trained briefly by the real command; 312 of 1,040 characters are held out."""
    return trained(tmp_path_factory.mktemp("runs") / "tiny", sentences)


@pytest.fixture(scope="module")
def bundles(run_folder):
    run = load_run(run_folder)
    return run, build_bundle(run, "tiny-int8", "int8"), build_bundle(run, "tiny")


@pytest.fixture
def short_texts(monkeypatch):
    """Make generated texts short."""
    monkeypatch.setattr(measuring, "CHARACTERS", 2048)
    monkeypatch.setattr(measuring, "CALL", 16)


def by_pytorch(run, ids):
    """Bits per character of ids [tracks, time] except the first of each track, from the zero state."""
    with torch.inference_mode():
        logits, _ = run.build()(torch.from_numpy(ids[:, :-1]))
    nats = F.cross_entropy(logits.double().flatten(0, 1), torch.from_numpy(ids[:, 1:].flatten()))
    return float(nats) / math.log(2)


def held_out(run):
    return np.array(run.vocabulary.encode(read_texts(run.training).held_out))


def test_the_loss_is_measured_on_the_held_out_text(bundles):
    run, int8, fp32 = bundles
    loss, ids = measure_loss(run, int8, fp32), held_out(run)
    assert len(ids) == 312
    assert (loss.text, loss.characters) == ("validation text", 311)
    assert loss.bits_per_char_fp32 == pytest.approx(by_pytorch(run, ids[None]), abs=1e-5)
    assert loss.bits_per_char_fp32 < math.log2(len(run.vocabulary))  # it has learned something
    assert 0 < abs(loss.loss) < 0.05
    assert loss.loss == loss.bits_per_char - loss.bits_per_char_fp32


@pytest.mark.parametrize(("shortest", "tracks"), [(100, 3), (30, 8), (1, 8), (400, 1)])
def test_a_long_text_is_read_in_tracks(bundles, monkeypatch, shortest, tracks):
    """Each track begins from the zero state; all have the same length."""
    monkeypatch.setattr(measuring, "SHORTEST", shortest)
    monkeypatch.setattr(measuring, "TRACKS", 8)
    run, int8, fp32 = bundles
    loss, ids = measure_loss(run, int8, fp32), held_out(run)
    ids = ids[: len(ids) // tracks * tracks].reshape(tracks, -1)
    assert loss.characters == ids.size - tracks
    assert loss.bits_per_char_fp32 == pytest.approx(by_pytorch(run, ids), abs=1e-5)


def test_only_the_beginning_of_a_very_long_text_is_read(bundles, monkeypatch):
    monkeypatch.setattr(measuring, "CHARACTERS", 90)
    monkeypatch.setattr(measuring, "TRACKS", 10)
    monkeypatch.setattr(measuring, "SHORTEST", 20)
    run, int8, fp32 = bundles
    loss, ids = measure_loss(run, int8, fp32), held_out(run)[:100].reshape(5, 20)
    assert loss.characters == 95
    assert loss.bits_per_char_fp32 == pytest.approx(by_pytorch(run, ids), abs=1e-5)


def test_the_length_of_the_calls_does_not_matter(bundles, monkeypatch):
    run, int8, fp32 = bundles
    whole = measure_loss(run, int8, fp32)
    for steps in (1, 7, 1000):
        monkeypatch.setattr(measuring, "CALL", steps)
        assert measure_loss(run, int8, fp32).bits_per_char == pytest.approx(whole.bits_per_char, abs=1e-9)


@pytest.mark.parametrize(
    "options", ["--lines --ngrams 2", "--lines --tokenizer regex:ing|[a-zA-Z.,]|\\x20 --min-count 2"]
)
def test_lines_are_measured_from_start_to_end(sentences, tmp_path, options):
    """As training measures them: each line by itself, with its end."""
    folder = trained(tmp_path / "run", sentences, options)
    summary = json.loads((folder / "summary.json").read_text())
    run = load_run(folder)
    fp32, int8 = (build_bundle(run, "run", precision) for precision in ("fp32", "int8"))
    found = measure_loss(run, int8, fp32)
    assert found.text == "validation text"
    assert found.characters == summary["val_chars"]
    assert found.bits_per_char_fp32 == pytest.approx(summary["bits_per_char"], abs=1e-4)
    assert abs(found.loss) < 0.05


@pytest.mark.parametrize("options", ["--cell lstm", "--cell rnn --embedding 4 --layers 2", "--min-count 15"], ids=str)
def test_other_cells_and_unknown_characters(sentences, tmp_path, options):
    """`<unk>` is read and counted like any other symbol."""
    run = load_run(trained(tmp_path / "run", sentences, options))
    assert (run.vocabulary.unknown_id is None) == ("--min-count" not in options)
    loss = measure_loss(run, build_bundle(run, "x", "int8"), build_bundle(run, "x"))
    assert loss.text == "validation text"
    assert loss.bits_per_char_fp32 == pytest.approx(by_pytorch(run, held_out(run)[None]), abs=1e-5)


# Without the text


def gone(run, path):
    path.unlink()
    return run


def changed(run, path):
    path.write_text(SENTENCES * 9 + SENTENCES.swapcase())
    return run


def shorter(run, path):
    path.write_text("t")
    return run


def never_held_out(run, path):
    return replace(run, training=replace(run.training, validation=0.0))


@pytest.mark.parametrize("loses", [gone, changed, shorter, never_held_out])
def test_without_the_text_the_model_generates_one(sentences, bundles, tmp_path, short_texts, loses):
    path = tmp_path / "text.txt"
    path.write_text(sentences.read_text())
    run, int8, fp32 = bundles
    run = replace(run, training=replace(run.training, corpus=(str(path),)))
    assert measure_loss(run, int8, fp32).text == "validation text"
    loss = measure_loss(loses(run, path), int8, fp32)
    assert (loss.text, loss.characters) == (WRITTEN, 2048)
    assert measure_loss(run, int8, fp32) == loss or loses is never_held_out  # the same text each time


@pytest.mark.parametrize("corpora", [{"corpus": ("-",)}, {"validation_corpus": ("/dev/stdin",)}])
def test_a_text_that_came_through_a_pipe_is_not_read_again(bundles, short_texts, monkeypatch, corpora):
    """Standard input now belongs to whoever runs the export."""
    run, int8, fp32 = bundles
    run = replace(run, training=replace(run.training, **corpora))
    monkeypatch.setattr(measuring, "read_texts", lambda training: pytest.fail("it was read"))
    assert measure_loss(run, int8, fp32).text == WRITTEN


def test_a_generated_text_is_measured_as_by_pytorch(bundles, short_texts):
    run, int8, fp32 = bundles
    run = replace(run, training=replace(run.training, corpus=("nowhere",)))
    ids = measuring._generate_text(session(fp32.graphs["decode_logprobs"]), fp32)
    assert ids.shape == (64, 33)
    assert (ids[:, 0] == run.vocabulary.start_id).all()
    assert len({tuple(track) for track in ids.tolist()}) == 64
    loss = measure_loss(run, int8, fp32)
    assert loss.bits_per_char_fp32 == pytest.approx(by_pytorch(run, ids), abs=1e-5)


def test_random_weights_have_no_text_at_all(short_texts):
    run = make_run()
    loss = measure_loss(run, build_bundle(run, "x", "int8"), build_bundle(run, "x"))
    assert loss.text == WRITTEN
    assert abs(loss.loss) < 0.01


# Too much


@pytest.fixture
def two_bits(monkeypatch):
    """Weights of -1, 0 and 1 times a scale: correct graphs of a much worse model."""
    for module in ("graphs.arithmetic", "parity.emulation", "graphs.portable"):
        monkeypatch.setattr(f"rill.export.{module}.WEIGHT_STEPS", 1)


def test_a_bundle_that_predicts_clearly_worse_is_refused(run_folder, tmp_path, capsys, two_bits, unverified):
    assert main([str(run_folder), "--out", str(tmp_path / "out"), "--precision", "fp32", "int8"]) == 1
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "int8 costs 0." in errors or "int8 costs 1." in errors
    assert "validation text), more than 0.01; export it with --allow-loss, or as fp32" in errors
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tiny"]


def test_it_is_accepted_with_allow_loss(run_folder, tmp_path, two_bits):
    report = tmp_path / "report.json"
    arguments = [str(run_folder), "--out", str(tmp_path / "out"), "--precision", "int8", "--json", str(report)]
    assert main([*arguments, "--allow-loss"]) == 0
    assert read_bundle(tmp_path / "out" / "tiny-int8").precision == "int8"
    (row,) = json.loads(report.read_text())
    manifest = json.loads((tmp_path / "out" / "tiny-int8" / MANIFEST).read_text())
    loss = manifest["parity"]["loss"]
    assert loss["text"] == row["loss_measured_on"] == "validation text"
    assert loss["characters"] == 311
    assert (row["bits_per_char"], row["bits_per_char_fp32"]) == (loss["bits_per_char"], loss["bits_per_char_fp32"])
    assert row["bits_per_char"] > row["bits_per_char_fp32"] + 0.01


@pytest.mark.parametrize(("most", "refused"), [(0.0099, True), (0.0101, False)])
def test_the_limit(bundles, tmp_path, monkeypatch, unverified, most, refused):
    run, *_ = bundles
    monkeypatch.setattr("rill.export.pipeline.MAX_LOSS", most)
    monkeypatch.setattr("rill.export.pipeline.measure_loss", lambda *_: Loss(2.01, 2.0, 311, "validation text"))
    if refused:
        with pytest.raises(LossError, match=r"int8 costs 0\.0100 bits per character \(2\.0100 instead of 2\.0000"):
            export_loaded(run, "tiny", tmp_path, "int8")
        assert not list(tmp_path.iterdir())
    else:
        assert export_loaded(run, "tiny", tmp_path, "int8").loss == Loss(2.01, 2.0, 311, "validation text")


def test_fp32_has_no_loss(bundles, tmp_path, unverified):
    run, *_ = bundles
    exported = export_loaded(run, "tiny", tmp_path)
    assert exported.loss is None
    assert "loss" not in json.loads((tmp_path / "tiny" / MANIFEST).read_text())["parity"]
