"""Reading a bundle: it is whole, or refused in one sentence."""

import hashlib
import json
import shutil

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from random_models import make_run, save_bundle

from rill.bundle import FORMAT_VERSION, MANIFEST, BundleError, ngrams_header, read_bundle
from rill.export.errors import UnsupportedError
from rill.export.graphs.build import build_bundle
from rill.export.jobs import require_bundle_name
from rill.export.write import manifest_of, write_bundle

# Some are what people call things; the others would break a line, a path or an encoding.
NAMES = [
    *(
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "三国\u3000演义",
        "my\u00a0poems",
        "\U0001f469\u200d\U0001f4bb",
    ),
    *(
        "e\u0301",
        "\u200fשלום\u200e",
        "a b",
        "\ufeffx",
        "\U000e0067",
        "\ue000",
        "\u0378",
        "\uffff",
        "[bold]x[/]",
        "-x",
        "a,b",
        "%s",
    ),
    *(
        "x" * 249,
        "é" * 124,
        "x" * 250,
        "é" * 125,
        "",
        ".",
        "..",
        ".x",
        "a/b",
        "a\\b",
        "a\0",
        "tab\tname",
        "a\nb",
        "a\r",
    ),
    *("a\x1b[2J", "a\x7f", "a\x85", "a\u2028b", "a\u2029b", "a\u202eb", "a\u2066b", "a\udcff"),
]


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
        (lambda f: edit(f, lambda m: m.update(name="a\ud800")), r"is wrong: 'a\\ud800' cannot be the 'name'"),
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
        (lambda f: edit(f, lambda m: m["vocabulary"].append("\ud800")), "has half a surrogate pair"),
        (lambda f: edit(f, lambda m: m["vocabulary"].pop()), "model_id does not match"),
        (lambda f: edit(f, lambda m: m["vocabulary"].append("a")), "repeats a symbol"),
        (lambda f: edit(f, lambda m: m["vocabulary"].append(7)), "is wrong"),
        (lambda f: edit(f, lambda m: m["model"].pop("hidden")), "lacks 'hidden'"),
        (
            lambda f: edit(f, lambda m: m["graphs"]["decode"].update(file="../secret")),
            "'../secret' instead of 'decode.onnx'",
        ),
        (lambda f: (f / "decode-constrained.onnx").unlink(), "decode-constrained.onnx cannot be read"),
        (lambda f: (f / "decode-constrained.onnx").write_bytes(b"x"), "decode-constrained.onnx is damaged"),
        (lambda f: edit(f, lambda m: m.update(constrained=[])), "there is no graph 'decode_constrained'"),
        (lambda f: edit(f, lambda m: m.update(constrained=None)), "is wrong"),
        (lambda f: edit(f, lambda m: m["constrained"].pop("decode_constrained")), "no graph 'decode_constrained'"),
        (lambda f: edit(f, lambda m: m["constrained"].update(decode=m["graphs"]["decode"])), "'decode' is not one of"),
        (
            lambda f: edit(f, lambda m: m["constrained"]["decode_constrained"].update(file="/etc/passwd")),
            "'/etc/passwd' instead of 'decode-constrained.onnx'",
        ),
        (lambda f: edit(f, lambda m: m["model"].update(task="tag")), "graphs for texts that must match|is wrong|lacks"),
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


def is_exported(name):
    try:
        require_bundle_name(name)
    except UnsupportedError:
        return False
    return True


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("names") / "small"
    return folder, save_bundle(make_run(hidden=4), folder)


@pytest.mark.parametrize("name", NAMES)
def test_export_and_server_agree_about_names(name, small, tmp_path):
    """Whatever name export takes can be written to disk, and is read there."""
    folder, _ = small
    shutil.copytree(folder, tmp_path / "copy")
    edit(tmp_path / "copy", lambda m: m.update(name=name))
    if is_exported(name):
        bundle = build_bundle(make_run(hidden=4), name)
        write_bundle(bundle, manifest_of(bundle, {}, {}), tmp_path / name)
        assert read_bundle(tmp_path / name).name == read_bundle(tmp_path / "copy").name == name
    else:
        with pytest.raises(BundleError, match=r"manifest\.json is wrong: .*'name'") as caught:
            read_bundle(tmp_path / "copy")
        assert str(caught.value).isprintable()


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.one_of(st.text(st.characters()), st.text(max_size=3).map(lambda text: "x" * 247 + text)))
def test_export_and_server_agree_about_any_name(name, small):
    folder, _ = small
    edit(folder, lambda m: m.update(name=name))
    accepted = is_exported(name)
    try:
        assert read_bundle(folder).name == name
        assert accepted
    except BundleError:
        assert not accepted


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(symbols=st.sets(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8))
@example(symbols={"\0", "\ue000", "\uffff", "\u2028", "\U0010ffff", '"', "\\", "\x7f"})
def test_any_characters_can_be_a_vocabulary(symbols, tmp_path):
    symbols = tuple(symbols)
    bundle = build_bundle(make_run(symbols, hidden=2), "any")
    write_bundle(bundle, manifest_of(bundle, {}, {}), tmp_path / "any")
    assert read_bundle(tmp_path / "any").vocabulary.symbols == symbols


def test_half_a_surrogate_pair_is_not_a_symbol():
    with pytest.raises(ValueError, match="half a surrogate pair"):
        make_run(("a", "\udfff"))


@pytest.fixture(scope="module")
def ngrams_run():
    return make_run(("a", "b", "c"), hidden=4, ngrams=3)  # 27 rows of 12 columns


def replace_ngrams(folder, data):
    """Another table, with its checksum."""
    (folder / "ngrams.npy").write_bytes(data)
    edit(folder, lambda m: m["ngrams"].update(sha256=hashlib.sha256(data).hexdigest()))


def link_ngrams(folder):
    outside = folder.parent / "elsewhere.npy"
    shutil.move(folder / "ngrams.npy", outside)
    (folder / "ngrams.npy").symlink_to(outside)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "ngrams.npy").unlink(), "ngrams.npy cannot be read"),
        (lambda f: (f / "ngrams.npy").write_bytes(b""), "ngrams.npy is damaged"),
        (link_ngrams, "ngrams.npy is a link to a file outside the bundle"),
        (lambda f: (f / "ngrams.npy").write_bytes(bytes(1425)), "ngrams.npy is larger than 1424 bytes"),
        (lambda f: replace_ngrams(f, b"x" * 1424), r"ngrams.npy is not a float32 array of shape \(27, 12\)"),
        (lambda f: replace_ngrams(f, ngrams_header(27, 12)), "ngrams.npy is not a float32 array of shape"),
        (
            lambda f: replace_ngrams(f, ngrams_header(12, 27) + bytes(4 * 27 * 12)),
            "ngrams.npy is not a float32 array of shape",
        ),
        (
            lambda f: replace_ngrams(f, ngrams_header(27, 12).replace(b"<f4", b"<i4") + bytes(4 * 27 * 12)),
            "ngrams.npy is not a float32 array of shape",
        ),
        (
            lambda f: replace_ngrams(f, ngrams_header(27, 12) + bytes(4 * 27 * 12)),
            "model_id does not match the graphs, ",
        ),
        (lambda f: edit(f, lambda m: m.pop("ngrams")), "lacks 'ngrams'"),
        (lambda f: edit(f, lambda m: m.update(ngrams=[])), "is wrong"),
        (lambda f: edit(f, lambda m: m["ngrams"].update(file="../x.npy")), "'../x.npy' instead of 'ngrams.npy'"),
        (lambda f: edit(f, lambda m: m["model"].update(ngrams=10**9)), "ngrams must be a whole number from 1 to 8"),
        (lambda f: edit(f, lambda m: m["model"].update(ngrams="3")), "ngrams must be a whole number"),
        (lambda f: edit(f, lambda m: m["model"].update(ngram_rows=10**12)), "ngram_rows must be a whole number"),
        (lambda f: edit(f, lambda m: m["model"].pop("ngram_rows")), "lacks 'ngram_rows'"),
        (
            lambda f: edit(f, lambda m: (m["model"].update(ngrams=8), m["states"][1].update(shape=["batch", 7]))),
            "larger than 1424 bytes|is damaged|not a float32 array",
        ),
        (lambda f: edit(f, lambda m: m["model"].update(ngrams=1)), "ngrams 1 has format 2, not 3"),
        (lambda f: edit(f, lambda m: m.update(format_version=2)), "ngrams 3 has format 3, not 2"),
        (lambda f: edit(f, lambda m: m["states"].pop()), r'context -> next_context of shape \["batch", 2\]'),
        (lambda f: edit(f, lambda m: m["states"][1].update(shape=["batch", 1])), "the states of this gru must be"),
        (lambda f: edit(f, lambda m: m["states"][1].pop("dtype")), "the states of this gru must be"),
    ],
)
def test_damaged_ngram_tables_are_refused_in_one_sentence(tmp_path, ngrams_run, damage, message):
    folder = tmp_path / "ngrams"
    save_bundle(ngrams_run, folder)
    damage(folder)
    with pytest.raises(BundleError, match=message) as caught:
        read_bundle(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_tables_of_gigabytes_are_refused_by_the_manifest_alone(tmp_path, ngrams_run):
    folder = tmp_path / "ngrams"
    save_bundle(ngrams_run, folder)
    symbols = [chr(0x4E00 + index) for index in range(300)]
    edit(folder, lambda m: (m["model"].update(ngram_rows=2**31), m.update(vocabulary=symbols)))
    with pytest.raises(BundleError, match="bytes are larger than 2147483647"):
        read_bundle(folder)


def test_a_bundle_without_tables_has_the_format_of_earlier_programs(tiny_folder, tmp_path, tiny_run):
    assert json.loads((tiny_folder / MANIFEST).read_text())["format_version"] == 2
    folder = tmp_path / "tiny"
    save_bundle(tiny_run, folder)
    edit(folder, lambda m: m.update(ngrams={"file": "ngrams.npy", "sha256": "0"}))
    with pytest.raises(BundleError, match="there are n-gram tables, but the model has none"):
        read_bundle(folder)
