"""Reading a bundle: it is whole, or refused in one sentence."""

import json

import pytest
from random_models import save_bundle

from rill.bundle import FORMAT_VERSION, MANIFEST, BundleError, read_bundle


def edit(folder, change):
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "decode.onnx").write_bytes(b"x" + (f / "decode.onnx").read_bytes()), "decode.onnx is damaged"),
        (lambda f: (f / "model.onnx").unlink(), "model.onnx cannot be read"),
        (lambda f: (f / MANIFEST).unlink(), "no manifest.json"),
        (lambda f: (f / MANIFEST).write_text("{"), "is not JSON"),
        (lambda f: (f / MANIFEST).write_bytes(b"\xff\xfe"), "is not JSON"),
        (lambda f: (f / MANIFEST).write_text("[]"), "no format_version"),
        (lambda f: (f / MANIFEST).write_text("[" * 100_000), "is not JSON"),
        (lambda f: (f / MANIFEST).write_text('{"format_version": ' + "1" * 5000 + "}"), "is not JSON"),
        (lambda f: edit(f, lambda m: m.update(format_version=FORMAT_VERSION + 1)), "a newer format .*update Rill"),
        (lambda f: edit(f, lambda m: m.update(format_version=0)), "an older format .*export the run again"),
        (lambda f: edit(f, lambda m: m.update(format_version="1")), "no format_version"),
        (lambda f: edit(f, lambda m: m.update(model=[])), "lacks 'task'"),
        (lambda f: edit(f, lambda m: m.update(model=None)), "is wrong"),
        (lambda f: edit(f, lambda m: m.update(name="")), "'name' must be a non-empty string"),
        (lambda f: edit(f, lambda m: m.update(name="a\ud800")), "is wrong: .* all printable"),
        (lambda f: edit(f, lambda m: m.update(model_id=7)), "'model_id' must be a non-empty string"),
        (lambda f: edit(f, lambda m: m.update(model_id="0" * 64)), "model_id does not match"),
        (lambda f: edit(f, lambda m: m.update(precision="fp16")), "precision 'fp16' is not one of fp32, int8"),
        (lambda f: edit(f, lambda m: m.pop("precision")), "lacks 'precision'"),
        (lambda f: edit(f, lambda m: m["model"].update(task="translate")), "task 'translate' is not generate or tag"),
        (lambda f: edit(f, lambda m: m["model"].update(task=["tag"])), "is wrong"),
        (lambda f: edit(f, lambda m: m["model"].update(cell="qrnn")), "cell 'qrnn' is not one of gru, lstm, rnn"),
        (
            lambda f: edit(f, lambda m: m["model"].update(cell="lstm")),
            "states of this lstm must be state_h .* state_c",
        ),
        (lambda f: edit(f, lambda m: m["model"].update(bidirectional=True)), r'of shape \[2, "batch", 32\]'),
        (lambda f: edit(f, lambda m: m["model"].update(bidirectional=1)), "bidirectional must be true or false"),
        (lambda f: edit(f, lambda m: m["model"].update(layers=0)), "layers must be a whole number of at least 1"),
        (lambda f: edit(f, lambda m: m["model"].update(layers=True)), "layers must be a whole number"),
        (lambda f: edit(f, lambda m: m["model"].update(hidden="32")), "hidden must be a whole number"),
        (lambda f: edit(f, lambda m: m.update(states=[])), "must be state_h -> next_state_h of shape"),
        (lambda f: edit(f, lambda m: m["states"].append(m["states"][0])), "the states of this gru must be"),
        (lambda f: edit(f, lambda m: m["states"][0].update(next="state_h")), "the states of this gru must be"),
        (
            lambda f: edit(f, lambda m: m["states"][0].update(name="h", next="next_h")),
            "the states of this gru must be",
        ),
        (lambda f: edit(f, lambda m: m["states"][0].update(shape=[1, "batch", 64])), "the states of this gru must be"),
        (lambda f: edit(f, lambda m: m["states"][0].pop("next")), "the states of this gru must be"),
        (lambda f: edit(f, lambda m: m.pop("graphs")), "lacks 'graphs'"),
        (lambda f: edit(f, lambda m: m.update(graphs=[])), "there is no graph 'model'"),
        (lambda f: edit(f, lambda m: m["graphs"].pop("model")), "there is no graph 'model'"),
        (lambda f: edit(f, lambda m: m["graphs"].pop("decode")), "there is no graph 'decode'"),
        (lambda f: edit(f, lambda m: m["graphs"].update(beam=m["graphs"]["model"])), "'beam' is not one of model"),
        (lambda f: edit(f, lambda m: m["graphs"]["model"].pop("sha256")), "lacks 'sha256'"),
        (lambda f: edit(f, lambda m: m["graphs"].update(model="model.onnx")), "is wrong"),
        (lambda f: edit(f, lambda m: m["graphs"]["decode"].update(file="model.onnx")), "'model.onnx' instead of 'dec"),
        (lambda f: edit(f, lambda m: m.pop("vocabulary")), "lacks 'vocabulary'"),
        (lambda f: edit(f, lambda m: m["vocabulary"].append("\ud800")), "is wrong"),
        (lambda f: edit(f, lambda m: m["vocabulary"].pop()), "model_id does not match"),
        (lambda f: edit(f, lambda m: m["vocabulary"].append("a")), "repeats a symbol"),
        (lambda f: edit(f, lambda m: m["vocabulary"].append(7)), "is wrong"),
        (lambda f: edit(f, lambda m: m["model"].pop("hidden")), "lacks 'hidden'"),
        (
            lambda f: edit(f, lambda m: m["graphs"]["decode"].update(file="../secret")),
            "'../secret' instead of 'decode.onnx'",
        ),
    ],
)
def test_a_damaged_bundle_is_refused_in_one_sentence(tmp_path, tiny_run, damage, message):
    folder = tmp_path / "tiny"
    save_bundle(tiny_run, folder)
    damage(folder)
    with pytest.raises(BundleError, match=message) as caught:
        read_bundle(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_no_such_folder_is_said_so(tmp_path):
    with pytest.raises(BundleError, match="no such folder"):
        read_bundle(tmp_path / "nothing")
