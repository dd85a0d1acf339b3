"""A run folder restores the model, or the error says exactly what is wrong."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from rill.train.config import ModelConfig, TrainingConfig
from rill.train.errors import RunError
from rill.train.nets.model import CharacterModel
from rill.train.record.files import replace_file
from rill.train.record.folder import RunConfig, save_config
from rill.train.record.run import load_run, save_weights
from rill.vocabulary import Vocabulary


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = RunConfig(
        ModelConfig(hidden=8, embedding=3), TrainingConfig(steps=5, corpus=("x",)), Vocabulary(("a", "b"))
    )
    save_config(tmp_path, config)
    torch.manual_seed(0)
    save_weights(tmp_path, CharacterModel(config.model, 2))
    return tmp_path


def test_a_saved_run_is_restored(folder: Path) -> None:
    torch.manual_seed(0)
    original = CharacterModel(ModelConfig(hidden=8, embedding=3), 2)
    run = load_run(str(folder))
    assert run.model == original.config
    assert run.vocabulary.symbols == ("a", "b")
    assert run.training == TrainingConfig(steps=5, corpus=("x",))
    assert run.labels == ()
    rebuilt = run.build()
    assert not rebuilt.training
    for name, weight in original.state_dict().items():
        assert torch.equal(rebuilt.state_dict()[name], weight)


def edit_config(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        change(weights)
        safetensors.torch.save_file(weights, folder / "model.safetensors")

    return damage


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda f: (f / "config.json").unlink(), "is not a run folder: it has no config.json"),
        (lambda f: (f / "config.json").write_text('{"model"'), "config.json is damaged"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "config.json is damaged"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json is damaged: it must hold a JSON object"),
        (edit_config(lambda c: c.pop("vocabulary")), "config.json lacks 'vocabulary'"),
        (edit_config(lambda c: c.update(vocabulary="ab")), "'vocabulary' must be a list of strings"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), "config.json is damaged"),
        (edit_config(lambda c: c.update(vocabulary=["a", "a"])), "the vocabulary repeats a symbol"),
        (
            edit_config(lambda c: c.update(vocabulary=["a", "\ud800"])),
            "has half a surrogate pair",
        ),
        (
            edit_config(lambda c: c["model"].update(layers=2**31)),
            "layers must be a whole number of at least 1 and at most 1000, not 2147483648",
        ),
        (
            edit_config(lambda c: c["model"].update(hidden=2**62)),
            "hidden must be a whole number of at least 1 and at most 1048576, not 4611686018427387904",
        ),
        (edit_config(lambda c: c.update(model={"cell": "gru", "size": 3})), "ModelConfig has no field 'size'"),
        (edit_config(lambda c: c.update(labels=["x", "y"])), "'labels' are for taggers, and only for them; task is"),
        (edit_config(lambda c: c["model"].update(task="tag")), "'labels' are for taggers, and only for them; task is"),
        (edit_config(lambda c: c.update(model=[])), "ModelConfig must be a JSON object, not list"),
        (
            edit_config(lambda c: c.update(model={"hidden": "8"})),
            "hidden must be a whole number of at least 1 and at most 1048576, not '8'",
        ),
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors yet: no evaluation has been reached"),
        (lambda f: (f / "model.safetensors").write_bytes(b"half"), "model.safetensors is damaged"),
        (edit_weights(lambda w: w.pop("linear.bias")), "lacks linear.bias"),
        (edit_weights(lambda w: w.update(extra=torch.ones(2))), "holds extra, which the model"),
        (
            edit_weights(lambda w: w.update({"linear.weight": torch.ones(2, 9)})),
            "linear.weight has shape (2, 9), but config.json asks for (2, 8)",
        ),
        (edit_weights(lambda w: w["linear.bias"].fill_(torch.nan)), "linear.bias holds NaN or infinite values"),
        (edit_weights(lambda w: w.update({"linear.bias": torch.ones(2).half()})), "linear.bias is torch.float16"),
    ],
)
def test_each_damage_is_named(folder: Path, damage: Callable[[Path], None], complaint: str) -> None:
    damage(folder)
    with pytest.raises(RunError, match=re.escape(complaint)):
        load_run(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such folder"):
        load_run(tmp_path / "nowhere")


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(OSError, match=r"No space left on device.*file'"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
