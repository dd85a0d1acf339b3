"""Windows cover the text as documented, and the held-out loss is the plain mean."""

import math
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from rill.train.config import ModelConfig, TrainingConfig
from rill.train.errors import CorpusError
from rill.train.nets.model import CharacterModel
from rill.train.text.data import _encode
from rill.train.text.held_out import HeldOutText
from rill.train.text.split import read_texts
from rill.train.text.windows import RandomWindows, SequentialWindows
from rill.vocabulary import UnknownCharacterError, Vocabulary


@given(st.integers(1, 8), st.integers(1, 9), st.data())
def test_sequential_windows_predict_every_character_once(batch: int, window: int, data: st.DataObject) -> None:
    length = data.draw(st.integers(batch * window + 1, 300))
    windows = SequentialWindows(torch.arange(length), batch, window)
    targets: Counter[int] = Counter()
    previous_end = None
    for index in range(len(windows)):
        inputs, expected = windows.batch(0, index)
        assert torch.equal(inputs + 1, expected)
        assert inputs.shape[0] == batch
        assert inputs.shape[1] == window or index == len(windows) - 1
        if previous_end is not None:  # each row continues where it stopped, so the state can be carried over
            assert torch.equal(inputs[:, 0], previous_end)
        previous_end = expected[:, -1]
        targets.update(expected.flatten().tolist())
    left_out = (length - 1) % batch
    assert targets == Counter(range(1, length - left_out))


@given(st.integers(1, 5), st.integers(1, 9), st.data())
def test_random_windows_do_not_overlap_and_change_by_epoch(batch: int, window: int, data: st.DataObject) -> None:
    length = data.draw(st.integers((batch + 1) * window, 400))
    windows = RandomWindows(torch.arange(length), batch, window, seed=3)
    seen = []
    for index in range(len(windows)):
        inputs, targets = windows.batch(1, index)
        assert inputs.shape == (batch, window)
        assert torch.equal(inputs + 1, targets)
        assert torch.equal(inputs, RandomWindows(torch.arange(length), batch, window, seed=3).batch(1, index)[0])
        seen += inputs.flatten().tolist()
    assert len(set(seen)) == len(seen)
    assert len(seen) > length - (batch + 1) * window - batch * window


def test_random_windows_differ_between_epochs_and_seeds() -> None:
    ids = torch.arange(10_000)
    first = RandomWindows(ids, 4, 10, seed=0).batch(0, 0)[0]
    assert not torch.equal(first, RandomWindows(ids, 4, 10, seed=0).batch(1, 0)[0])
    assert not torch.equal(first, RandomWindows(ids, 4, 10, seed=1).batch(0, 0)[0])


@pytest.mark.parametrize(("validation", "held_out"), [(0.1, 100), (0.25, 250), (0.0, 0)])
def test_the_end_of_the_text_is_held_out(tmp_path: Path, validation: float, held_out: int) -> None:
    text = "".join(chr(0x4E00 + index) for index in range(1000))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    texts = read_texts(TrainingConfig(corpus=(str(tmp_path / "text.txt"),), validation=validation, steps=1))
    assert len(texts.held_out) == held_out
    assert texts.training + texts.held_out == text


def test_too_little_text_is_refused() -> None:
    with pytest.raises(CorpusError, match="100 characters cannot be cut into 8 tracks of at least one window of 16"):
        SequentialWindows(torch.arange(100), 8, 16)
    with pytest.raises(CorpusError, match="do not fill a batch of 8 random windows of 16"):
        RandomWindows(torch.arange(100), 8, 16, seed=0)
    with pytest.raises(CorpusError, match="held-out text has 10 characters, too few for one window of 16"):
        HeldOutText(torch.arange(10), 16)


def test_held_out_loss_of_one_track_is_the_loss_of_the_text_read_in_one_go() -> None:
    torch.manual_seed(0)
    model = CharacterModel(ModelConfig(hidden=8, dropout=0.5), 5)
    ids = torch.randint(5, (900,))
    loss = HeldOutText(ids, 10).measure(model).loss
    assert model.training  # given back as it was
    with torch.no_grad():
        logits, _ = model.eval()(ids[None, :-1])
    assert loss == pytest.approx(F.cross_entropy(logits[0], ids[1:]).item(), rel=1e-5)


def test_held_out_loss_predicts_all_but_a_few_characters() -> None:
    model = CharacterModel(ModelConfig(hidden=8), 5)
    torch.nn.init.zeros_(model.linear.weight)
    torch.nn.init.zeros_(model.linear.bias)
    held_out = HeldOutText(torch.randint(5, (100_000,)), 64)
    assert 100_000 - 65 <= held_out.characters < 100_000
    assert held_out.measure(model, limit=3).loss == pytest.approx(math.log(5), rel=1e-5)


@given(st.text("ab\U0001f600é<unk>", max_size=30), st.booleans())
def test_a_text_is_encoded_as_by_the_vocabulary(text: str, unknown: bool) -> None:
    vocabulary = Vocabulary(("<unk>", "a", "b", "n", "\U0001f600") if unknown else ("a", "b", "é", "\U0001f600"))
    try:
        expected = vocabulary.encode(text)
    except UnknownCharacterError as error:
        with pytest.raises(UnknownCharacterError, match=re.escape(str(error))):
            _encode(vocabulary, text)
        return
    encoded = _encode(vocabulary, text)
    assert encoded.dtype == torch.int64
    assert encoded.tolist() == expected
