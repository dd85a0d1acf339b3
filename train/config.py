"""The configuration of a run: the model's and the training's, as stored in config.json.

Each field declares its option of `rill train`: the command makes its parser from them, and every configuration, whether
it comes from the command line, a recipe or config.json, is checked by them.
"""

import codecs
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from rill.ngrams import DEFAULT_ROWS, MAX_NGRAMS
from rill.train.errors import ConfigError, did_you_mean
from rill.train.options import (
    DATA,
    EVALUATION,
    GENERAL,
    LENGTH,
    MODEL,
    TRAINING,
    encodings,
    number,
    one_of,
    option_of,
    suffixes,
    text,
    texts,
    truth,
    whole,
)

MAX_THREADS = 1024
MAX_LAYERS, MAX_UNITS = 1000, 2**20  # far above any real model, so that computing its shapes is quick
MAX_NGRAM_ROWS = 2**24
HORIZONS = ("steps", "epochs", "max_minutes")
DEFAULT_EPOCHS = 10
NGRAM_FIELDS = ("ngrams", "ngram_rows")
NGRAM_TRAINING_FIELDS = ("ngram_dropout", "ngram_decay")
LINES_WINDOW = 256  # symbols: most lines are shorter
OF_SYMBOLS = ("lines", "tokenizer", "start_symbol", "end_symbol")  # a run that starts from another one has its values
LATER = ("suffix", "encoding", "held_out", *NGRAM_TRAINING_FIELDS, *OF_SYMBOLS, "symbols")  # which first runs lacked


class _Section:
    """One section of config.json: a dataclass whose fields are the keys."""

    @classmethod
    def from_json(cls, section: object) -> Self:
        """Make the section from its decoded JSON; omitted keys take their defaults. Raises ConfigError."""
        if not isinstance(section, Mapping):
            raise ConfigError(f"{cls.__name__} must be a JSON object, not {type(section).__name__}")
        known = [declared.name for declared in fields(cls)]  # type: ignore[arg-type]  # every subclass is a dataclass
        for key in sorted(set(section) - set(known)):
            raise ConfigError(f"{cls.__name__} has no field {key!r}{did_you_mean(key, known)}")
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in section.items()})

    def to_json(self) -> dict[str, Any]:
        """The section as JSON-ready values."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]  # every subclass is a dataclass

    def _check_fields(self) -> None:
        """Raise ConfigError for a value that its field's option does not accept."""
        for declared in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            name, option, value = declared.name, option_of(declared), getattr(self, declared.name)
            if option is None or (value is None and declared.default is None):
                continue
            if not option.accepts(value):
                suggestion = did_you_mean(value, option.choices)
                raise ConfigError(f"{name} must be {option.requirement}, not {value!r}{suggestion}")
            for given in value if option.several else ():
                try:
                    given.encode()
                except UnicodeEncodeError:  # command-line bytes that are not UTF-8 arrive as lone surrogates
                    raise ConfigError(
                        f"{name} {given!r} is not UTF-8; rename the file, or read it with --corpus -"
                    ) from None


@dataclass(frozen=True)
class ModelConfig(_Section):
    """A recurrent model over symbols. Raises ConfigError for values that describe no model.

    A `generate` model predicts the next symbol; a `tag` model labels every symbol, and may be bidirectional. `reset` is
    where a GRU's reset gate acts: `after` the recurrent product (`nn.GRU`, cuDNN) or `before` it (Cho et al.).
    `embedding` 0 means one-hot input. `bias` is about the cell: the output layer always has one. With `residual`, each
    layer from the second on adds its input to its output, and the output layer reads the last sum. `dropout` acts
    between the layers and before the output layer, in training only. With `ngrams` above 1, the first layer's input is
    the symbol's row plus a row for the last 2, 3, … `ngrams` symbols, of the tables that rill.ngrams defines;
    `ngram_rows` is the size of the tables in which n-grams share rows.
    """

    task: str = one_of("generate", MODEL, "predict the next symbol, or label each symbol", "generate", "tag")
    cell: str = one_of("gru", MODEL, "recurrent cell; rnn is tanh", "gru", "lstm", "rnn")
    reset: str = one_of("after", MODEL, "where a GRU's reset gate acts: after or before the product", "after", "before")
    layers: int = whole(1, MODEL, "recurrent layers", 1, MAX_LAYERS)
    hidden: int = whole(256, MODEL, "units per layer", 1, MAX_UNITS)
    embedding: int = whole(0, MODEL, "size of the embedding; 0: one-hot input", 0, MAX_UNITS)
    bias: bool = truth(True, MODEL, "recurrent layers without biases")
    residual: bool = truth(False, MODEL, "add each layer's input to its output, from layer 2 on")
    bidirectional: bool = truth(False, MODEL, "read in both directions (--task tag only)")
    dropout: float = number(0.0, MODEL, "dropout between layers and before the output layer", "P", below=1.0)
    ngrams: int = whole(1, MODEL, "add rows of tables for the last 2 to N symbols to the input", 1, MAX_NGRAMS)
    ngram_rows: int = whole(
        DEFAULT_ROWS, MODEL, "rows of each table that has no row for every n-gram", 1, MAX_NGRAM_ROWS
    )

    def __post_init__(self) -> None:
        self._check_fields()
        if self.reset == "before" and self.cell != "gru":
            raise ConfigError(f"reset 'before' is for GRUs; {self.cell} has no reset gate")
        if self.bidirectional and self.task != "tag":
            raise ConfigError("a bidirectional model reads ahead, so it can tag but not generate; use --task tag")
        if self.ngrams > 1 and self.task == "tag":
            raise ConfigError("n-gram tables are for models that predict the next symbol; a tagger has none (ngrams 1)")
        if self.ngrams == 1 and self.ngram_rows != DEFAULT_ROWS:
            raise ConfigError("ngram_rows is the size of n-gram tables; give ngrams, 2 or more, too")

    def to_json(self) -> dict[str, Any]:
        """The section as JSON-ready values, without the fields of n-gram tables where the model has none.

        So a model without them has the same config.json, checkpoint digest and graphs as before there were any.
        """
        section = super().to_json()
        return section if self.ngrams > 1 else {name: section[name] for name in section if name not in NGRAM_FIELDS}

    @property
    def directions(self) -> int:
        """2 for a bidirectional model, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def state_parts(self) -> tuple[str, ...]:
        """The parts of the state that are vectors: h, and an LSTM's c. The context follows them, if there is one."""
        return ("h", "c") if self.cell == "lstm" else ("h",)

    @property
    def context_length(self) -> int:
        """The number of symbols that the context holds: all but the last of the longest n-gram."""
        return self.ngrams - 1

    @property
    def features(self) -> int:
        """The width of a layer's output, which is the input width of the output layer."""
        return self.hidden * self.directions


@dataclass(frozen=True)
class TrainingConfig(_Section):
    """How a model is trained. Raises ConfigError for impossible values.

    Data: of the folders in `corpus`, the files with a `suffix` are read (none: .txt and .md), in their `encoding`.
    `prepare` cleans the text. `validation` is the held-out fraction, at the end or of drawn lines or documents as
    `held_out` says, unless `validation_characters` or `validation_corpus` is given. `corpus_sha256` is the digest of
    the data, by which a resumed run checks that it reads the same text.

    Length: exactly one of `steps`, `epochs` and `max_minutes`; `patience` may end a run earlier.

    A step: `accumulate` batches of `batch` windows of `window` characters between truncations of backpropagation.
    `learning_rate` rises over `warmup` steps, then stays or falls to 1 % along a cosine. `clip` is the largest norm of
    the gradient. `scratch` computes the cell by its written-out equations. `keep` says which weights the run folder
    ends with: the best by validation, or the last.

    Evaluations: every `evaluate_epochs` epochs, or every `evaluate_every` steps, or (both 0) twenty times over the run.

    `start` is the run folder that the initial weights came from, if any; `recipe` names the source of these values.
    """

    recipe: str = text("", GENERAL, "take the values of a published result", "NAME")
    corpus: tuple[str, ...] = texts(
        (),
        GENERAL,
        "text files, folders (their .txt and .md files, or those of --suffix), quoted patterns such as"
        " 'src/**/*.py', - (standard input), shakespeare, sanguo, pydoc or moses;"
        " with --task tag: JSON lines, or subtraction:BITS;"
        " required unless a run is resumed or the recipe names a corpus",
        "SPEC",
    )
    suffix: tuple[str, ...] = suffixes((), DATA, "which files of a folder to read (default .txt .md)")
    encoding: str = encodings("utf-8", DATA, "encoding of the files; of several (utf-8,cp1252), the first that fits")
    validation_corpus: tuple[str, ...] = texts((), DATA, "hold out another corpus", "SPEC")
    held_out: str = one_of(
        "tail",
        DATA,
        "what to hold out: the end of the text, or lines or documents (files) drawn by --seed",
        *("tail", "lines", "documents"),
    )
    corpus_sha256: str = ""
    prepare: str = one_of(
        "none",
        DATA,
        "letters: lower-case letters and single spaces only; line: newlines become spaces",
        *("none", "letters", "line"),
    )
    lines: bool = truth(False, DATA, "each line is a text of its own, from a start symbol to an end symbol")
    tokenizer: str = text(
        "chars",
        DATA,
        "what a symbol is: a character; the longest of --symbols that fits; what one of the patterns in --symbols, or"
        " 'regex:PATTERN', matches; smiles is such a pattern",
        "chars|longest|regex",
        form="chars, longest, regex, smiles or regex:PATTERN",
        pattern="chars|longest|regex|smiles|regex:[\\s\\S]*",
        choices=("chars", "longest", "regex", "smiles"),
    )
    symbols: str = text("", DATA, "the symbols, one a line or a JSON list; with --tokenizer regex, patterns", "FILE")
    start_symbol: str = text("<start>", DATA, "with --lines: name of the symbol before a line", "NAME", flag="--start")
    end_symbol: str = text("<end>", DATA, "with --lines: name of the symbol after a line", "NAME", flag="--end")
    characters: int = whole(0, DATA, "use the first N characters only; 0: all")
    min_count: int = whole(1, DATA, "symbols that occur less often become <unk>", 1)
    validation: float = number(0.1, DATA, "fraction of the text that is held out", "FRACTION", below=1.0)
    validation_characters: int = whole(0, DATA, "hold out the N characters after --characters; 0: use --validation")
    start: str = text("", GENERAL, "start with the weights and the vocabulary of another run", "RUN", flag="--from")
    steps: int | None = whole(None, LENGTH, "optimizer steps", 1)
    epochs: int | None = whole(None, LENGTH, f"passes over the text (default {DEFAULT_EPOCHS} without a length)", 1)
    max_minutes: float | None = number(
        None, LENGTH, "minutes from the start of the program to its end, all included", "M", zero=False
    )
    patience: int = whole(0, TRAINING, "stop after N evaluations without improvement; 0: never")
    batch: int = whole(32, TRAINING, "windows, or lines, per batch", 1)
    window: int = whole(64, TRAINING, f"symbols per window; with --lines {LINES_WINDOW}", 1)
    sampling: str = one_of(
        "sequential",
        TRAINING,
        "sequential windows, which carry the state over, or random ones",
        *("sequential", "random"),
    )
    accumulate: int = whole(1, TRAINING, "batches per step", 1)
    optimizer: str = one_of("adamw", TRAINING, "optimizer", "adamw", "sgd", "rmsprop")
    momentum: float = number(0.0, TRAINING, "momentum of sgd and rmsprop", "M", below=1.0)
    learning_rate: float = number(5e-3, TRAINING, "peak learning rate", "R", zero=False)
    warmup: int = whole(100, TRAINING, "steps of linear warm-up; under --max-minutes at most 5 % of the time")
    schedule: str = one_of("cosine", TRAINING, "learning rate after the warm-up; cosine: to 1 %", "cosine", "constant")
    weight_decay: float = number(0.01, TRAINING, "weight decay", "R")
    ngram_dropout: float = number(0.0, TRAINING, "dropout of whole rows of the n-gram tables", "P", below=1.0)
    ngram_decay: float = number(0.01, TRAINING, "weight decay of the n-gram tables", "R")
    clip: float = number(1.0, TRAINING, "largest norm of the gradient; 0: no limit", "N")
    initialization: str = one_of(
        "default", TRAINING, "initial weights; default: PyTorch's", "default", "normal", "orthogonal"
    )
    scratch: bool = truth(False, TRAINING, "compute cells by their written-out equations")
    precision: str = one_of("fp32", TRAINING, "arithmetic; bf16 is autocast, for GPUs", "fp32", "bf16")
    keep: str = one_of("best", TRAINING, "weights to keep: best by validation, or last", "best", "last")
    seed: int = whole(
        0, TRAINING, "seed of weights, dropout, random windows and what is drawn to be held out", 0, 2**64 - 1
    )
    device: str = text(
        "auto",
        TRAINING,
        "auto (the GPU if there is one), cpu, cuda or cuda:N",
        "DEVICE",
        form="auto, cpu, cuda or cuda:N",
        pattern="auto|cpu|cuda(:[0-9]+)?",
    )
    threads: int = whole(
        0,
        TRAINING,
        "CPU threads; 0: one per core, or under --max-minutes as many as are fastest at the moment",
        0,
        MAX_THREADS,
    )
    evaluate_every: int = whole(0, EVALUATION, "steps between evaluations; 0: twenty evaluations over the run")
    evaluate_epochs: int = whole(0, EVALUATION, "epochs between evaluations; 0: use --evaluate-every")
    sample_every: int = whole(4, EVALUATION, "evaluations between samples; 0: sample at the end only")
    prefix: tuple[str, ...] = texts(("",), EVALUATION, "what each sample begins with", "TEXT")
    temperature: float = number(0.8, EVALUATION, "temperature of the samples", "T")

    def __post_init__(self) -> None:
        if sum(getattr(self, name) is not None for name in HORIZONS) != 1:
            raise ConfigError("give exactly one of steps, epochs and max_minutes")
        self._check_fields()
        if self.evaluate_every and self.evaluate_epochs:
            raise ConfigError("give evaluate_every (steps) or evaluate_epochs, not both")
        if self.momentum and self.optimizer == "adamw":
            raise ConfigError("momentum is for sgd and rmsprop; AdamW has its own")
        self._check_symbols()
        if self.validation_characters and not self.characters:
            raise ConfigError("validation_characters are the ones after the first --characters; give that too")
        if self.validation_characters and self.validation_corpus:
            raise ConfigError("give validation_characters or validation_corpus, not both")
        if self.held_out != "tail" and (self.characters or self.validation_corpus or not self.validation):
            raise ConfigError(
                f"held_out {self.held_out!r} draws a fraction of the whole corpus; give it with validation, but without"
                " characters and validation_corpus"
            )
        if self.patience and not self.holds_out:
            raise ConfigError("patience needs a validation loss; with validation 0 there is none")

    def _check_symbols(self) -> None:
        """Raise ConfigError for options of symbols and lines that contradict one another."""
        if self.tokenizer in ("longest", "regex") and not self.symbols and not self.start:
            what = "symbols" if self.tokenizer == "longest" else "patterns"
            other = "" if self.tokenizer == "longest" else ", or a pattern as tokenizer 'regex:PATTERN' (smiles is one)"
            raise ConfigError(f"tokenizer {self.tokenizer} needs {what}: give symbols, a file with one a line{other}")
        if not self.lines:
            for name, default in (("start_symbol", "<start>"), ("end_symbol", "<end>")):
                if getattr(self, name) != default:
                    raise ConfigError(
                        f"{name} {getattr(self, name)!r} is for lines, each a text of its own; give lines"
                    )
        if self.lines and not (self.start_symbol and self.end_symbol):
            raise ConfigError("start_symbol and end_symbol cannot be empty")
        if self.lines and self.prepare != "none":
            raise ConfigError(f"prepare {self.prepare!r} leaves no lines; it is for one long text, without lines")
        if self.lines and self.sampling != "sequential":
            raise ConfigError("sampling 'random' is for one long text; lines are shuffled in any case")
        if (self.lines or self.tokenizer != "chars") and self.characters:
            raise ConfigError("characters cuts a text anywhere; it is for models of characters, without lines")

    def to_json(self) -> dict[str, Any]:
        """The section as JSON-ready values; LATER fields only where they differ from the default.

        So a run of the defaults has the same config.json, and its checkpoint the same digest, as before.
        """
        section = super().to_json()
        return {
            declared.name: section[declared.name]
            for declared in fields(self)
            if declared.name not in LATER or section[declared.name] != declared.default
        }

    @property
    def encodings(self) -> tuple[str, ...]:
        """The encodings to try, by the names that Python gives them."""
        return tuple(codecs.lookup(name).name for name in self.encoding.split(","))

    @property
    def holds_out(self) -> bool:
        """Whether part of the data is held out."""
        return bool(self.validation or self.validation_characters or self.validation_corpus)
