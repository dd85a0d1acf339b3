"""Tagged sequences are read exactly, trained on once per epoch, and counted as correct only as a whole."""

import hashlib
import io
import json
import math
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rill.train.errors import CorpusError
from rill.train.text import windows
from rill.train.text.held_out import HeldOutSequences
from rill.train.text.subtraction import subtraction
from rill.train.text.tagging import TaggedSequence, load_tagged, split_tagged
from rill.train.text.windows import SequenceBatches, Windows
from rill.vocabulary import Vocabulary

CPU = torch.device("cpu")
BITS = ("0", "1")
PAIRS = Vocabulary(("00", "01", "10", "11"), tokenizer="sequences")


def numbers(sequence: tuple[tuple[str, ...], tuple[str, ...]], most_significant_first: bool) -> tuple[int, int, int]:
    """x, y and the difference, decoded from the digits."""
    symbols, labels = sequence
    if not most_significant_first:
        symbols, labels = symbols[::-1], labels[::-1]
    x, y = (int("".join(symbol[which] for symbol in symbols), 2) for which in (0, 1))
    return x, y, int("".join(labels), 2)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 64), st.booleans())
def test_subtraction_subtracts(bits: int, most_significant_first: bool) -> None:
    sequences = subtraction(f"subtraction:{bits}{':msb' if most_significant_first else ''}")
    pairs = set()
    for sequence in sequences[:: len(sequences) // 200 + 1]:
        assert len(sequence[0]) == len(sequence[1]) == bits
        x, y, difference = numbers(sequence, most_significant_first)
        assert x - y == difference >= 0
        pairs.add((x, y))
    assert len(pairs) == len(sequences[:: len(sequences) // 200 + 1])


def test_short_subtractions_are_complete() -> None:
    pairs = {numbers(sequence, most_significant_first=False)[:2] for sequence in subtraction("subtraction:4")}
    assert pairs == {(x, y) for x in range(16) for y in range(x + 1)}
    assert len(subtraction("subtraction:4")) == 136
    assert len(subtraction("subtraction:8")) == 256 * 257 // 2


@pytest.mark.parametrize("bits", [9, 24, 64])
def test_long_subtractions_have_small_and_large_numbers_and_no_pair_twice(bits: int) -> None:
    sequences = subtraction(f"subtraction:{bits}")
    pairs = [numbers(sequence, most_significant_first=False)[:2] for sequence in sequences]
    assert len(set(pairs)) == len(sequences) == 2000
    for operand in (0, 1):
        used = Counter(pair[operand].bit_length() for pair in pairs)
        assert all(used[length] > 3 for length in range(2, bits + 1)), used


def test_the_order_of_digits() -> None:
    six_minus_three = next(s for s in subtraction("subtraction:4") if numbers(s, False)[:2] == (6, 3))
    assert six_minus_three == (("01", "11", "10", "00"), ("1", "1", "0", "0"))
    assert (six_minus_three[0][::-1], six_minus_three[1][::-1]) in subtraction("subtraction:4:msb")


def test_a_range_of_lengths_is_all_of_them_shortest_first() -> None:
    apart = [sequence for bits in (2, 3, 4, 5) for sequence in subtraction(f"subtraction:{bits}:msb")]
    assert subtraction("subtraction:2-5:msb") == apart


def test_drawn_subtractions_are_the_same_everywhere() -> None:
    content = repr(subtraction("subtraction:9-20")).encode()
    assert hashlib.sha256(content).hexdigest() == "e9ea0c2ca0859f1f48995a42e4acc52584c7dbdfe98474f97704d9b07f0707b5"


@pytest.mark.parametrize(
    "end",
    [
        "",
        ":",
        ":0",
        ":65",
        ":4-3",
        ":0-3",
        ":3-65",
        ":four",
        ":4:lsb",
        ":4:msb:",
        ":-4",
        ":4-",
        ":٤",
        ":4\n",
        ":100",
    ],
)
def test_other_subtractions_are_refused(end: str) -> None:
    with pytest.raises(CorpusError, match="is not a subtraction corpus; write subtraction:BITS or subtraction:FEW"):
        load_tagged([f"subtraction{end}"])


def line(symbols: object, labels: object, **more: object) -> str:
    return json.dumps({"symbols": symbols, "labels": labels, **more}, ensure_ascii=False) + "\n"


def test_files_of_json_lines_and_subtraction_in_the_order_given(tmp_path: Path) -> None:
    first = line(["the", "cat"], ["DET", "NOUN"], source="a key that is not looked at")
    second = line(["a\u2028b", "\x85", "é"], ["x", "y", "z"])  # line ends to str.splitlines, not to JSON lines
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{first}\n  \n{second}".encode().replace(b"\n", b"\r\n"))
    (tmp_path / "b.jsonl").write_text(line(["b"], ["B"]).rstrip("\n"))
    sequences = load_tagged([str(tmp_path / "b.jsonl"), "subtraction:1", str(tmp_path / "a.jsonl")])
    assert sequences == [
        TaggedSequence(("b",), ("B",)),
        TaggedSequence(("00",), ("0",)),
        TaggedSequence(("10",), ("1",)),
        TaggedSequence(("11",), ("0",)),
        TaggedSequence(("the", "cat"), ("DET", "NOUN")),
        TaggedSequence(("a\u2028b", "\x85", "é"), ("x", "y", "z")),
    ]
    assert all(isinstance(sequence, TaggedSequence) for sequence in sequences)


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(line(["a"], ["b"]).encode())))
    assert load_tagged(["-"]) == [TaggedSequence(("a",), ("b",))]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"{")))
    with pytest.raises(CorpusError, match="standard input, line 1, column 2: not JSON"):
        load_tagged(["-"])
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(CorpusError, match="standard input is closed"):
        load_tagged(["-"])


def test_a_name_wins_over_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "subtraction:1").write_text(line(["a"], ["b"]))
    assert len(load_tagged(["subtraction:1"])) == 3
    assert load_tagged(["./subtraction:1"]) == [TaggedSequence(("a",), ("b",))]


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ('{"symbols": ["a"], labels: []}', r", column 20: not JSON \(Expecting property name"),
        ('["a", "b"]', r': not an object \{"symbols": \[...\], "labels": \[...\]\}'),
        ("1" * 5000, ": Exceeds the limit"),
        ("[" * 100_000, ": maximum recursion depth exceeded"),
        ('{"symbols": ["a"]}', ': "labels" is missing'),
        ('{"labels": ["a"]}', ': "symbols" is missing'),
        (line("ab", ["x", "y"]), ': "symbols" is not a list of strings'),
        (line(["a", "b"], ["x", 1]), ': "labels" is not a list of strings'),
        (line(["a", None], ["x", "y"]), ': "symbols" is not a list of strings'),
        (line([], []), ': "symbols" is empty'),
        (line(["a", ""], ["x", "y"]), ': "symbols" has an empty string at position 1'),
        (line(["a", "b"], ["", "y"]), ': "labels" has an empty string at position 0'),
        (line(["a", "b"], ["x"]), ": 2 symbols but 1 labels"),
        (r'{"symbols": ["\ud83d", "\ude00"], "labels": ["x", "y"]}', ': "symbols" has half of a surrogate pair'),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, bad: str, complaint: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(line(["a"], ["x"]) + "\n" + bad)
    with pytest.raises(CorpusError, match=r"bad\.jsonl, line 3" + complaint):
        load_tagged([str(file)])


def test_a_source_without_sequences_is_named(tmp_path: Path) -> None:
    (tmp_path / "blank.jsonl").write_text("\n \n")
    (tmp_path / "latin.jsonl").write_bytes(b'{"symbols": ["\xe9"], "labels": ["x"]}')
    with pytest.raises(CorpusError, match=r"blank\.jsonl is empty"):
        load_tagged([str(tmp_path / "blank.jsonl")])
    with pytest.raises(CorpusError, match=r"latin\.jsonl is not UTF-8: byte 0xe9 at offset 14"):
        load_tagged([str(tmp_path / "latin.jsonl")])
    with pytest.raises(CorpusError, match="is a folder; name its files"):
        load_tagged([str(tmp_path)])
    with pytest.raises(CorpusError, match=r"nowhere' is neither a file of JSON lines, '-' nor subtraction:BITS"):
        load_tagged([str(tmp_path / "nowhere")])


@settings(deadline=None)
@given(st.integers(2, 60), st.floats(0, 0.99), st.integers(0, 2**64 - 1))
def test_every_sequence_is_on_one_side_of_the_split(count: int, validation: float, seed: int) -> None:
    sequences = [TaggedSequence((str(index),), ("x",)) for index in range(count)]
    held_out_count = round(count * validation)
    if validation and held_out_count in (0, count):
        with pytest.raises(CorpusError, match=r"use a (larger|smaller) --validation"):
            split_tagged(sequences, validation, seed)
        return
    training, held_out = split_tagged(sequences, validation, seed)
    assert len(held_out) == held_out_count
    assert sorted(training + held_out) == sorted(sequences)
    assert (training, held_out) == split_tagged(sequences, validation, seed)
    for side in (training, held_out):
        assert all(int(one.symbols[0]) < int(other.symbols[0]) for one, other in pairwise(side))


def test_the_split_is_drawn_from_the_seed() -> None:
    sequences = [TaggedSequence((str(index),), ("x",)) for index in range(100)]
    held_out = {seed: split_tagged(sequences, 0.2, seed)[1] for seed in range(3)}
    assert held_out[0] != held_out[1] != held_out[2] != held_out[0]
    assert all(sequences[-20:] != chosen != sequences[:20] for chosen in held_out.values())


def test_a_split_with_an_empty_side_says_what_to_do() -> None:
    sequences = [TaggedSequence(("a",), ("x",))] * 3
    with pytest.raises(CorpusError, match=r"0\.1 of 3 sequences leaves none to validate on; use a larger --val"):
        split_tagged(sequences, 0.1, seed=0)
    with pytest.raises(CorpusError, match=r"0\.9 of 3 sequences leaves none to train on; use a smaller --val"):
        split_tagged(sequences, 0.9, seed=0)
    assert split_tagged(sequences, 0.0, seed=0) == (sequences, [])


def numbered(lengths: list[int]) -> tuple[list[TaggedSequence], Vocabulary, tuple[str, ...]]:
    """Sequences of these lengths; the symbols of each are its number, its labels the number plus the step."""
    sequences = [
        TaggedSequence((f"s{number}",) * length, tuple(f"t{number + step}" for step in range(length)))
        for number, length in enumerate(lengths)
    ]
    symbols = tuple(f"s{number}" for number in range(len(lengths)))
    labels = tuple(f"t{number}" for number in range(len(lengths) + max(lengths)))
    return sequences, Vocabulary(symbols, tokenizer="sequences"), labels


def epoch_of(batches: Windows, epoch: int) -> list[list[list[int]]]:
    """The inputs of all batches."""
    return [batches.batch(epoch, index)[0].tolist() for index in range(len(batches))]


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=30), st.integers(1, 7), st.integers(0, 2**64 - 1))
def test_every_sequence_is_read_once_an_epoch_beside_others_of_its_length(
    lengths: list[int], rows: int, seed: int
) -> None:
    sequences, vocabulary, labels = numbered(lengths)
    batches = SequenceBatches(sequences, vocabulary, labels, rows, seed, CPU)
    read, sizes = [], Counter[tuple[int, int]]()
    for index in range(len(batches)):
        inputs, targets = batches.batch(5, index)
        assert inputs.dtype == targets.dtype == torch.int64
        assert inputs.shape == targets.shape
        sizes[inputs.shape[1], len(inputs)] += 1
        for symbols, steps in zip(inputs.tolist(), targets.tolist(), strict=True):
            read.append(TaggedSequence(tuple(vocabulary.symbols[i] for i in symbols), tuple(labels[i] for i in steps)))
    assert sorted(read) == sorted(sequences)
    for length, count in Counter(lengths).items():  # full batches, and the rest in one
        assert sizes[length, rows] == count // rows
        assert count % rows == 0 or sizes[length, count % rows] == 1
    assert sum(sizes.values()) == len(batches)
    again = SequenceBatches(sequences, vocabulary, labels, rows, seed, CPU)
    epoch_of(again, 4)  # a resumed run has not read the same epochs before
    assert epoch_of(again, 5) == epoch_of(batches, 5)


def test_the_order_and_the_members_of_batches_change_by_epoch_and_seed() -> None:
    sequences, vocabulary, labels = numbered([2] * 40 + [3] * 40)
    batches = SequenceBatches(sequences, vocabulary, labels, 4, 0, CPU)
    epochs = [epoch_of(batches, epoch) for epoch in range(3)]
    epochs.append(epoch_of(SequenceBatches(sequences, vocabulary, labels, 4, 1, CPU), 0))
    for one in range(4):
        for other in range(one):
            members = [{frozenset(map(tuple, batch)) for batch in epochs[which]} for which in (one, other)]
            assert len(members[0] & members[1]) < 5
            assert [len(batch[0]) for batch in epochs[one]] != [len(batch[0]) for batch in epochs[other]]
    assert [len(batch[0]) for batch in epochs[0]] != [2] * 10 + [3] * 10
    assert batches.carried is False


def test_batches_are_looked_up_without_drawing_the_epoch_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sequences, vocabulary, labels = numbered([1] * 10)
    batches = SequenceBatches(sequences, vocabulary, labels, 2, 0, CPU)
    expected = epoch_of(batches, 0)

    def forbidden(seed: object) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(windows.np.random, "default_rng", forbidden)
    assert epoch_of(batches, 0) == expected
    with pytest.raises(AssertionError, match="drawn again"):
        batches.batch(1, 0)


class Says(nn.Module):
    """A model whose logit for label "1" is the entry of `table` for the symbol, and 0 for label "0"."""

    def __init__(self, table: list[float]) -> None:
        super().__init__()
        self.table = torch.tensor(table)
        self.sizes: list[tuple[int, int]] = []

    def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        self.sizes.append((tokens.shape[0], tokens.shape[1]))
        ones = self.table[tokens]  # (B, T)
        return torch.stack([torch.zeros_like(ones), ones], dim=-1), None


def test_a_sequence_is_right_only_if_every_step_is() -> None:
    held_out = HeldOutSequences(
        [
            TaggedSequence(("10", "00"), ("1", "0")),  # right
            TaggedSequence(("10", "01"), ("1", "1")),  # wrong at the end
            TaggedSequence(("01", "00", "10"), ("1", "0", "1")),  # wrong at the beginning
            TaggedSequence(("10", "11", "00"), ("1", "0", "0")),  # right
            TaggedSequence(("00",), ("1",)),  # wrong
        ],
        PAIRS,
        BITS,
        CPU,
    )
    model = Says([-1.0, -2.0, 3.0, -4.0])
    loss, steps, accuracy = held_out.measure(model)
    assert steps == held_out.characters
    assert held_out.characters == 11
    assert accuracy == 2 / 5
    # The loss of a step is log(1 + exp(-margin)), the margin being how far the right logit is above the other.
    margins = [3, 1, 3, -2, -2, 1, 3, 3, 4, 1, -1]
    assert loss == pytest.approx(sum(math.log1p(math.exp(-margin)) for margin in margins) / 11, rel=1e-6)
    assert model.training
    model.eval()
    held_out.measure(model)
    assert not model.training
    assert sorted(model.sizes[:3]) == [(1, 1), (2, 2), (2, 3)]


def test_labels_keep_their_own_order() -> None:
    held_out = HeldOutSequences([TaggedSequence(("10", "00"), ("1", "0"))], PAIRS, ("1", "0"), CPU)
    assert held_out.measure(Says([1.0, 1.0, -1.0, 1.0])).accuracy == 1  # "1" is label 0 here


def test_held_out_sequences_are_measured_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rill.train.text.held_out.MAX_STEPS", 4096)
    short, long, longest = (TaggedSequence(("10",) * length, ("1",) * length) for length in (2, 1500, 5000))
    wrong = TaggedSequence(("10", "10"), ("1", "0"))
    held_out = HeldOutSequences([short] * 2047 + [wrong] + [long] * 3 + [longest] * 2, PAIRS, BITS, CPU)
    model = Says([0.0, 0.0, 2.0, 0.0])
    loss, steps, accuracy = held_out.measure(model)
    assert steps == held_out.characters
    assert model.sizes == [(1024, 2), (1024, 2), (2, 1500), (1, 1500), (1, 5000), (1, 5000)]
    steps = 2 * 2048 + 3 * 1500 + 2 * 5000
    assert held_out.characters == steps
    assert accuracy == 2052 / 2053
    assert loss == pytest.approx(((steps - 1) * math.log1p(math.exp(-2)) + math.log1p(math.exp(2))) / steps, rel=1e-5)


@pytest.mark.parametrize(
    ("sequence", "complaint"),
    [
        (
            TaggedSequence(("00", "01", "2x"), ("0", "1", "0")),
            "symbol '2x' at position 2 is not in the model's vocabulary; ",
        ),
        (
            TaggedSequence(("00", "2"), ("0", "1")),
            r"character '2' \(U\+0032\) at position 1 is not in",
        ),
        (
            TaggedSequence(("00", "01"), ("0", "-1")),
            "the label '-1' is not among the model's; train on",
        ),
        (TaggedSequence(("00",), ("<unk>",)), "the label '<unk>' is not among the model's"),
    ],
)
def test_symbols_and_labels_that_the_model_does_not_have_are_named(sequence: TaggedSequence, complaint: str) -> None:
    known = TaggedSequence(("00",), ("0",))
    with pytest.raises(CorpusError, match=complaint):
        HeldOutSequences([known, sequence], PAIRS, BITS, CPU)
    with pytest.raises(CorpusError, match=complaint):
        SequenceBatches([known, sequence], PAIRS, BITS, 2, 0, CPU)
