"""Sequences with a label at every step: reading them, batches of them, and how well a tagger labels held-out ones."""

import json
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rill.train.errors import CorpusError
from rill.train.text import subtraction
from rill.train.text.corpus import decode
from rill.train.text.held_out import Measured
from rill.vocabulary import UnknownCharacterError, Vocabulary

SPLIT_STREAM = 2**32 - 1  # beside (seed, epoch): no epoch has this number
SEQUENCES_AT_ONCE = 1024  # of the held-out ones, and
STEPS_AT_ONCE = 2**16  # of all of these together, so that long ones need no more memory


class Tagged(NamedTuple):
    """A sequence of symbols and the label of each, equally many."""

    symbols: tuple[str, ...]
    labels: tuple[str, ...]


def load_tagged(specs: Sequence[str]) -> list[Tagged]:
    """The sequences that `specs` name, in their order.

    A spec is a file of JSON lines, `-` for standard input, which holds the same, or `subtraction:BITS[:msb]`. A line is
    an object with `symbols` and `labels`, equally long lists of strings that are not empty; other keys are not looked
    at, and neither are blank lines. A name wins over a path (`./subtraction` is the path). Raises CorpusError, OSError.
    """
    return [sequence for spec in specs for sequence in _sequences(spec)]


def _sequences(spec: str) -> list[Tagged]:
    if spec.partition(":")[0] == subtraction.NAME:
        return [Tagged(symbols, labels) for symbols, labels in subtraction.subtraction(spec)]
    source = "standard input" if spec == "-" else spec
    # JSON strings may hold what str.splitlines takes for line ends too, such as U+2028.
    lines = enumerate(decode(_read(spec), source).split("\n"), start=1)
    sequences = [_parse(line, f"{source}, line {number}") for number, line in lines if line.strip()]
    if not sequences:
        raise CorpusError(f"{source} is empty")
    return sequences


def _read(spec: str) -> bytes:
    if spec == "-":
        if sys.stdin is None:
            raise CorpusError("standard input is closed; pipe JSON lines into it, or name a file")
        return sys.stdin.buffer.read()
    path = Path(spec)
    if path.is_dir():
        raise CorpusError(f"{path} is a folder; name its files of JSON lines one by one")
    if not path.exists():
        raise CorpusError(f"{spec!r} is neither a file of JSON lines, '-' nor {subtraction.NAME}:BITS")
    return path.read_bytes()


def _parse(line: str, place: str) -> Tagged:
    try:
        document = json.loads(line)
    except json.JSONDecodeError as error:
        raise CorpusError(f"{place}, column {error.colno}: not JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:  # thousands of digits or of brackets
        raise CorpusError(f"{place}: {error}") from None
    if not isinstance(document, dict):
        raise CorpusError(f'{place}: not an object {{"symbols": [...], "labels": [...]}}')
    sequence = Tagged(_strings(document, "symbols", place), _strings(document, "labels", place))
    if len(sequence.symbols) != len(sequence.labels):
        raise CorpusError(
            f"{place}: {len(sequence.symbols)} symbols but {len(sequence.labels)} labels; every step needs both"
        )
    return sequence


def _strings(document: dict[str, object], key: str, place: str) -> tuple[str, ...]:
    if key not in document:
        raise CorpusError(f'{place}: "{key}" is missing')
    values = document[key]
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise CorpusError(f'{place}: "{key}" is not a list of strings')
    if not values:
        raise CorpusError(f'{place}: "{key}" is empty')
    if "" in values:
        raise CorpusError(f'{place}: "{key}" has an empty string at position {values.index("")}')
    try:
        "".join(values).encode()
    except UnicodeEncodeError:  # JSON can escape what no text can hold, and config.json is text
        raise CorpusError(f'{place}: "{key}" has half of a surrogate pair') from None
    return tuple(values)


def split_tagged(sequences: Sequence[Tagged], validation: float, seed: int) -> tuple[list[Tagged], list[Tagged]]:
    """The sequences to train on and the held-out ones, a share `validation` (0 <= validation < 1) drawn from `seed`.

    Both are in the order of `sequences`. Raises CorpusError if a side would be empty although validation > 0.
    """
    count = round(len(sequences) * validation)
    if validation > 0 and not 0 < count < len(sequences):
        side = "validate" if count == 0 else "train"
        change = "larger" if count == 0 else "smaller"
        raise CorpusError(
            f"a share of {validation:g} held out of {len(sequences):,} sequences leaves none to {side} on;"
            f" use a {change} --validation, a larger corpus, or --validation 0"
        )
    order = np.random.default_rng((seed, SPLIT_STREAM)).permutation(len(sequences))
    chosen = set(order[:count].tolist())
    training = [sequence for index, sequence in enumerate(sequences) if index not in chosen]
    return training, [sequences[index] for index in sorted(chosen)]


class SequenceBatches:
    """Batches of up to `batch` sequences of one length, in an order drawn from (seed, epoch); zero state.

    Every sequence is read exactly once an epoch. Nothing is padded, so both directions of a network see sequences only;
    the last batch of each length may be smaller. Satisfies rill.train.text.windows.Windows. Raises CorpusError for a
    symbol or label that `vocabulary` or `labels` lacks.
    """

    carried = False

    def __init__(
        self,
        sequences: Sequence[Tagged],
        vocabulary: Vocabulary,
        labels: Sequence[str],
        batch: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self._groups = _encode_by_length(sequences, vocabulary, labels, device)
        self._length = sum(math.ceil(len(inputs) / batch) for inputs, _ in self._groups)
        self.rows, self.seed, self.device = batch, seed, device
        self._order = lru_cache(maxsize=1)(self._draw_order)

    def __len__(self) -> int:
        return self._length

    def batch(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Symbol ids and label ids, both (B, T) int64."""
        group, rows = self._order(epoch)[index]
        inputs, targets = self._groups[group]
        return inputs[rows], targets[rows]

    def _draw_order(self, epoch: int) -> list[tuple[int, Tensor]]:
        """For every batch the group it comes from and its rows there, (B,) int64."""
        random = np.random.default_rng((self.seed, epoch))
        batches = [
            (group, rows)
            for group, (inputs, _) in enumerate(self._groups)
            for rows in torch.split(torch.from_numpy(random.permutation(len(inputs))).to(self.device), self.rows)
        ]
        return [batches[index] for index in random.permutation(len(batches))]


class HeldOutSequences:
    """Held-out sequences, at least one. Raises CorpusError for a symbol or label that the model does not have."""

    def __init__(
        self, sequences: Sequence[Tagged], vocabulary: Vocabulary, labels: Sequence[str], device: torch.device
    ) -> None:
        self._groups = _encode_by_length(sequences, vocabulary, labels, device)
        self.sequences = len(sequences)

    @property
    def characters(self) -> int:
        """How many steps are labelled, over all sequences."""
        return sum(targets.numel() for _, targets in self._groups)

    @torch.inference_mode()
    def measure(self, model: nn.Module, limit: int | None = None) -> Measured:
        """Mean cross-entropy in nats per step, and the share of the sequences labelled right at every step.

        All sequences are measured, whatever the `limit`. `model` maps symbol ids (B, T) int64 to logits (B, T, labels)
        and a state; a step's label is the one with the largest logit.
        """
        was_training = model.training
        model.eval()
        nats, right = 0.0, 0
        for inputs, targets in self._groups:
            rows = max(1, min(SEQUENCES_AT_ONCE, STEPS_AT_ONCE // inputs.shape[1]))
            for part, expected in zip(torch.split(inputs, rows), torch.split(targets, rows), strict=True):
                logits, _ = model(part)
                nats += F.cross_entropy(logits.flatten(0, 1), expected.flatten(), reduction="sum").item()
                right += int((logits.argmax(-1) == expected).all(1).sum())
        model.train(was_training)
        return Measured(nats / self.characters, self.characters, right / self.sequences)


def _encode_by_length(
    sequences: Sequence[Tagged], vocabulary: Vocabulary, labels: Sequence[str], device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """For every length T the symbol ids and label ids of all sequences of that length, both (N, T) int64."""
    label_ids = {label: index for index, label in enumerate(labels)}
    groups: defaultdict[int, tuple[list[list[int]], list[list[int]]]] = defaultdict(lambda: ([], []))
    for sequence in sequences:
        inputs, targets = groups[len(sequence.symbols)]
        try:
            inputs.append(vocabulary.encode(sequence.symbols))
            targets.append([label_ids[label] for label in sequence.labels])
        except UnknownCharacterError as error:
            raise CorpusError(f"{error}; train on sequences that have it, or leave this one out") from None
        except KeyError as error:
            raise CorpusError(
                f"the label {error} is not among the model's; train on sequences that have it, or leave this one out"
            ) from None
    return [
        (torch.tensor(inputs, device=device), torch.tensor(targets, device=device))
        for inputs, targets in groups.values()
    ]
