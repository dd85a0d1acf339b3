"""Reading the corpora and splitting them into data to train on and held-out data."""

import hashlib
import json
import re
from dataclasses import dataclass

from rill.train.config import TrainingConfig
from rill.train.errors import CorpusError
from rill.train.text.corpus import load_corpus
from rill.train.text.tagging import TaggedSequence, load_tagged, split_tagged
from rill.vocabulary import Vocabulary


@dataclass(frozen=True)
class TextSplit:
    """The text to train on, the held-out text (may be empty), and the text whose characters are the vocabulary."""

    training: str
    held_out: str
    alphabet: str

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
        return Vocabulary(tuple(symbols), characters=False), tuple(labels)


def read_sequences(config: TrainingConfig) -> SequenceSplit:
    """Read and split tagged sequences as `config` says. Raises CorpusError, OSError."""
    sequences = load_tagged(config.corpus)
    if config.validation_corpus:
        return SequenceSplit(sequences, load_tagged(config.validation_corpus))
    return SequenceSplit(*split_tagged(sequences, config.validation, config.seed))


def read_texts(config: TrainingConfig) -> TextSplit:
    """Read, prepare and split a text as `config` says. Raises CorpusError, OSError.

    Text held out as a fraction is part of the corpus and shares its vocabulary; text held out after the first
    `characters`, or from another corpus, may have characters that the vocabulary lacks.
    """
    text = _prepare(load_corpus(config.corpus), config.prepare)
    if config.characters:
        needed = config.characters + config.validation_characters
        if len(text) < needed:
            raise CorpusError(
                f"the corpus {' '.join(config.corpus)} has {len(text):,} characters once prepared, but {needed:,} are"
                " needed; name a longer one, or give smaller --characters"
            )
        text, after = text[: config.characters], text[config.characters : needed]
    if config.validation_corpus:
        return TextSplit(text, _prepare(load_corpus(config.validation_corpus), config.prepare), text)
    if config.validation_characters:
        return TextSplit(text, after, text)
    cut = len(text) - int(len(text) * config.validation)
    return TextSplit(text[:cut], text[cut:], text)


def known_characters(text: str, vocabulary: Vocabulary) -> str:
    """`text` without the characters that `vocabulary` has no id for."""
    if vocabulary.unknown_id is not None:
        return text
    return "".join(character for character in text if vocabulary.id_of(character) is not None)


def _prepare(text: str, how: str) -> str:
    if how == "letters":  # as d2l prepares The Time Machine: anything else becomes one space
        return re.sub("[^A-Za-z]+", " ", text).lower()
    return text.replace("\n", " ") if how == "line" else text
