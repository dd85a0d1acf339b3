"""Reading the corpora and splitting them into data to train on and held-out data."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rill.train.config import TrainingConfig
from rill.train.errors import ConfigError, CorpusError
from rill.train.text.corpus import Corpus, join, read_corpus
from rill.train.text.order import looks_sorted
from rill.train.text.tagging import SPLIT_STREAM, TaggedSequence, load_tagged, split_tagged
from rill.vocabulary import SEQUENCES, Vocabulary

MANY_REPEATED = 0.01  # of the held-out lines


@dataclass(frozen=True)
class TextSplit:
    """The text to train on, the held-out text (may be empty), and the text whose characters are the vocabulary.

    `files` is the number of files that were read; `notes` are for the user; `corpora` are what was read.
    """

    training: str
    held_out: str
    alphabet: str
    files: int = 0
    notes: tuple[str, ...] = ()
    corpora: tuple[Corpus, ...] = field(default=(), compare=False, repr=False)

    def where(self, text: str, position: int) -> str:
        """Where in the corpora the character at `position` of `text`, one of the two, is: file, line, position."""
        begin = text.rfind("\n", 0, position) + 1
        end = text.find("\n", position)
        line = text[begin : end if end >= 0 else len(text)]
        for corpus in self.corpora:
            if place := corpus.find(line):
                return f"{place}, position {position - begin}"
        return f"the text, position {position}"

    def digest(self) -> str:
        """The SHA-256 of both texts."""
        return hashlib.sha256(json.dumps([self.training, self.held_out]).encode()).hexdigest()


@dataclass(frozen=True)
class SequenceSplit:
    """The sequences that a tagger is trained on, and the held-out ones (may be none)."""

    training: list[TaggedSequence]
    held_out: list[TaggedSequence]

    def digest(self) -> str:
        """The SHA-256 of all sequences."""
        return hashlib.sha256(json.dumps([self.training, self.held_out]).encode()).hexdigest()

    def vocabulary_and_labels(self) -> tuple[Vocabulary, tuple[str, ...]]:
        """The sorted symbols and the sorted labels of all sequences. Raises CorpusError if there is only one label."""
        everything = self.training + self.held_out
        symbols = sorted({symbol for sequence in everything for symbol in sequence.symbols})
        labels = sorted({label for sequence in everything for label in sequence.labels})
        if len(labels) < 2:
            raise CorpusError(f"every label is {labels[0]!r}; there is nothing to tell apart")
        return Vocabulary(tuple(symbols), SEQUENCES), tuple(labels)


def read_sequences(config: TrainingConfig) -> SequenceSplit:
    """Read and split tagged sequences as `config` says. Raises ConfigError, CorpusError, OSError."""
    if config.held_out != "tail":
        raise ConfigError("held_out is for text; the held-out sequences of a tagger are drawn in any case")
    sequences = load_tagged(config.corpus, config.suffix, config.encodings)
    if config.validation_corpus:
        return SequenceSplit(sequences, load_tagged(config.validation_corpus, config.suffix, config.encodings))
    return SequenceSplit(*split_tagged(sequences, config.validation, config.seed))


def read_texts(config: TrainingConfig) -> TextSplit:
    """Read, prepare and split a text as `config` says. Raises CorpusError, OSError.

    Text held out as a fraction is part of the corpus and shares its vocabulary; text held out after the first
    `characters`, or from another corpus, may have characters that the vocabulary lacks.
    """
    corpus = read_corpus(config.corpus, config.suffix, config.encodings)
    corpora: tuple[Corpus, ...] = (corpus,)
    files, notes = corpus.files, corpus.notes
    if config.lines:
        corpus = corpus.without_empty_lines()
        notes = corpus.notes
    if config.held_out != "tail":
        training, held_out, alphabet = _drawn(corpus, config)
        if config.lines:
            notes += _repeated(training, held_out)
        return TextSplit(training, held_out, alphabet, files, notes, corpora)
    text = _prepare(corpus.text, config.prepare)
    if config.characters:
        needed = config.characters + config.validation_characters
        if len(text) < needed:
            raise CorpusError(
                f"the corpus {' '.join(config.corpus)} has {len(text):,} characters once prepared, but {needed:,} are"
                " needed; name a longer one, or give smaller --characters"
            )
        text, after = text[: config.characters], text[config.characters : needed]
    if config.validation_corpus:
        other = read_corpus(config.validation_corpus, config.suffix, config.encodings)
        files, corpora = files + other.files, (*corpora, other)
        if config.lines:
            other = other.without_empty_lines()
        held_out = _prepare(other.text, config.prepare)
        return TextSplit(text, held_out, text, files, notes + other.notes, corpora)
    if config.validation_characters:
        return TextSplit(text, after, text, files, notes, corpora)
    cut = len(text) - int(len(text) * config.validation)
    if config.lines or config.tokenizer != "chars":  # a symbol ends where a line does
        cut = text.rfind("\n", 0, cut) + 1 or cut * (not config.lines)
    if config.validation and looks_sorted(corpus.text):
        notes += ("the lines are sorted; --held-out lines draws a part that is like the rest",)
    return TextSplit(text[:cut], text[cut:], text, files, notes, corpora)


def _repeated(training: str, held_out: str) -> tuple[str, ...]:
    """A note if many held-out lines are trained on, too."""
    lines = held_out.split("\n")[:-1]
    seen = set(training.split("\n"))
    both = sum(line in seen for line in lines)
    if both <= MANY_REPEATED * len(lines):
        return ()
    return (f"{both:,} of the {len(lines):,} held-out lines are also trained on, as the text repeats lines",)


def _drawn(corpus: Corpus, config: TrainingConfig) -> tuple[str, str, str]:
    """The text to train on, the held-out lines or documents, which are drawn from the seed, and both together.

    All keep their order. Raises CorpusError if one of the two would be empty.
    """
    parts = corpus.documents if config.held_out == "documents" else re.findall(r"[^\n]*\n|[^\n]+", corpus.text)
    chosen = _draw([len(part) for part in parts], config.validation, config.seed)
    if not 0 < len(chosen) < len(parts):
        raise CorpusError(
            f"{config.validation:.0%} of {len(parts):,} {config.held_out} cannot be held out; use another --validation,"
            " or --held-out tail"
        )
    sides = [[part for index, part in enumerate(parts) if (index in chosen) == held] for held in (False, True)]
    training, held_out = (_prepare(join(side), config.prepare) for side in sides)
    return training, held_out, training + held_out


def _draw(sizes: Sequence[int], fraction: float, seed: int) -> set[int]:
    """Indices of parts of these sizes, drawn from `seed`, which have about a `fraction` of the whole size."""
    wanted = fraction * sum(sizes)
    chosen: set[int] = set()
    for index in np.random.default_rng((seed, SPLIT_STREAM)).permutation(len(sizes)).tolist():
        if wanted <= 0:
            break
        if sizes[index] < 2 * wanted:  # it comes closer to what is wanted
            chosen.add(index)
            wanted -= sizes[index]
    return chosen


def known_characters(text: str, vocabulary: Vocabulary) -> str:
    """`text` without the characters that `vocabulary` has no id for."""
    if vocabulary.unknown_id is not None:
        return text
    return "".join(character for character in text if vocabulary.id_of(character) is not None)


def _prepare(text: str, how: str) -> str:
    if how == "letters":  # as d2l prepares The Time Machine: anything else becomes one space
        return re.sub("[^A-Za-z]+", " ", text).lower()
    return text.replace("\n", " ") if how == "line" else text
