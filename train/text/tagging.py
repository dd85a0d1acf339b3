"""Sequences with a label at every step: reading, splitting and encoding them."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rill.train.errors import CorpusError
from rill.train.text import subtraction
from rill.train.text.corpus import read_standard_input
from rill.train.text.decoding import UTF_8, decode, memory_limit, read_bytes
from rill.train.text.files import files_like, is_pattern, is_stream, nothing
from rill.vocabulary import UnknownCharacterError, Vocabulary

SPLIT_STREAM = 2**32 - 1  # seeds the split as (seed, epoch) seeds an epoch: no epoch has this number


class TaggedSequence(NamedTuple):
    """A sequence of symbols and as many labels."""

    symbols: tuple[str, ...]
    labels: tuple[str, ...]


def load_tagged(
    specs: Sequence[str], suffixes: Sequence[str] = (), encodings: Sequence[str] = (UTF_8,)
) -> list[TaggedSequence]:
    """Read the sequences that `specs` name, in their order.

    A spec is a file of JSON lines, a pattern for such files (with one of the `suffixes`, if there are any), `-` for
    JSON lines on standard input, or `subtraction:BITS[:msb]`. A line is an object with `symbols` and `labels`, equally
    long lists of strings that are not empty; other keys and blank lines are ignored. A name wins over a path
    (`./subtraction` is the path). Raises CorpusError, OSError.
    """
    found: list[TaggedSequence] = []
    for spec in specs:
        path = Path(spec)
        if spec.partition(":")[0] == subtraction.NAME:
            found += [TaggedSequence(*pair) for pair in subtraction.subtraction(spec)]
        elif spec == "-":
            found += _sequences(read_standard_input("JSON lines"), "standard input", encodings)
        elif path.is_dir():
            raise CorpusError(f"{path} is a folder; name its files of JSON lines one by one, or as '{path}/*.jsonl'")
        elif path.exists() or is_stream(spec):
            found += _sequences(read_bytes(path, memory_limit()), spec, encodings)
        elif is_pattern(spec):
            for file in files_like(spec, suffixes).paths:
                found += _sequences(read_bytes(file, memory_limit()), str(file), encodings)
        else:
            raise nothing(spec, f"a file of JSON lines, '-' nor {subtraction.NAME}:BITS", [])
    return found


def _sequences(data: bytes, source: str, encodings: Sequence[str]) -> list[TaggedSequence]:
    # Not str.splitlines: JSON strings may contain other line ends, such as U+2028.
    lines = enumerate(decode(data, source, encodings).split("\n"), start=1)
    sequences = [_parse(line, f"{source}, line {number}") for number, line in lines if line.strip()]
    if not sequences:
        raise CorpusError(f"{source} is empty")
    return sequences


def _parse(line: str, location: str) -> TaggedSequence:
    try:
        document = json.loads(line)
    except json.JSONDecodeError as error:
        raise CorpusError(f"{location}, column {error.colno}: not JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:  # thousands of digits or of brackets
        raise CorpusError(f"{location}: {error}") from None
    if not isinstance(document, dict):
        raise CorpusError(f'{location}: not an object {{"symbols": [...], "labels": [...]}}')
    sequence = TaggedSequence(_strings(document, "symbols", location), _strings(document, "labels", location))
    if len(sequence.symbols) != len(sequence.labels):
        raise CorpusError(
            f"{location}: {len(sequence.symbols)} symbols but {len(sequence.labels)} labels; every step needs both"
        )
    return sequence


def _strings(document: dict[str, object], key: str, location: str) -> tuple[str, ...]:
    if key not in document:
        raise CorpusError(f'{location}: "{key}" is missing')
    values = document[key]
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise CorpusError(f'{location}: "{key}" is not a list of strings')
    if not values:
        raise CorpusError(f'{location}: "{key}" is empty')
    if "" in values:
        raise CorpusError(f'{location}: "{key}" has an empty string at position {values.index("")}')
    try:
        "".join(values).encode()
    except UnicodeEncodeError:  # JSON can escape a lone surrogate, which config.json could not hold
        raise CorpusError(f'{location}: "{key}" has half of a surrogate pair') from None
    return tuple(values)


def split_tagged(
    sequences: Sequence[TaggedSequence], validation: float, seed: int
) -> tuple[list[TaggedSequence], list[TaggedSequence]]:
    """Split `sequences` into those to train on and the held-out ones, a fraction `validation` (0 <= validation < 1).

    Which ones are held out is drawn from `seed`; both keep the order of `sequences`. Raises CorpusError if one of the
    two would be empty although validation > 0.
    """
    count = round(len(sequences) * validation)
    if validation > 0 and not 0 < count < len(sequences):
        side = "validate" if count == 0 else "train"
        change = "larger" if count == 0 else "smaller"
        raise CorpusError(
            f"holding out a fraction of {validation:g} of {len(sequences):,} sequences leaves none to {side} on;"
            f" use a {change} --validation, a larger corpus, or --validation 0"
        )
    order = np.random.default_rng((seed, SPLIT_STREAM)).permutation(len(sequences))
    chosen = set(order[:count].tolist())
    training = [sequence for index, sequence in enumerate(sequences) if index not in chosen]
    return training, [sequences[index] for index in sorted(chosen)]


def encode_by_length(
    sequences: Sequence[TaggedSequence], vocabulary: Vocabulary, labels: Sequence[str], device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """For every length T, the symbol ids and label ids of all sequences of that length, both (N, T) int64.

    Raises CorpusError for a symbol or label that `vocabulary` or `labels` lacks.
    """
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
