"""Carry out a plan: read the text, build the trainer, run it, and say how it ended."""

import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from textwrap import fill

import torch

from rill.train.errors import ConfigError, CorpusError, RunError
from rill.train.loop.cpu import prepare_cpu
from rill.train.loop.device import resolve_device
from rill.train.loop.interrupt import Interrupt
from rill.train.loop.start import refuse_unseen, vocabulary_from
from rill.train.loop.team import Team
from rill.train.loop.trainer import Trainer
from rill.train.plan import Plan
from rill.train.record.display import COLUMNS, Display
from rill.train.record.files import replace_file
from rill.train.record.folder import HELD_OUT, RunConfig, save_config
from rill.train.record.outcome import outcome
from rill.train.record.run import Run, load_run
from rill.train.text.data import Data, symbol_data, tagged_data, text_data
from rill.train.text.files import is_stream, name_of
from rill.train.text.split import TextSplit, read_sequences, read_texts
from rill.train.text.symbols import CutSplit, cut_split, extended_vocabulary, has_symbols, new_vocabulary, recut
from rill.vocabulary import UnknownCharacterError, Vocabulary

DEEP = 4  # layers
SHOWN = 3  # of the names of a corpus, which may be a thousand files


def train(plan: Plan, team: Team, began: float, check_folder: Callable[[], object]) -> int:
    """Train as planned; the exit status: 0, or 128 + N if signal N stopped the run.

    The command began at `began`, by time.monotonic. `check_folder` raises RunError if the folder is no longer ours.
    Raises TrainError for what the user can fix, and OSError if a file cannot be written.
    """
    if find_spec("matplotlib") is None:  # rather than at the end of the run, which draws its curves
        raise ModuleNotFoundError(name="matplotlib")
    team.wait()  # until all processes have made their plans, before the first one writes config.json
    display = Display(quiet=not team.first)
    start = load_run(plan.start) if plan.start else None
    streams = [spec for spec in plan.training.corpus + plan.training.validation_corpus if is_stream(spec)]
    if team.size > 1 and streams:
        raise ConfigError(f"several processes cannot share {name_of(streams[0])}; name a file")
    device = resolve_device(team.device(plan.training.device))
    prepare_cpu(plan.training.threads)

    config, data = _read_data(plan, start, device)
    trainer = Trainer(plan.folder, config, data, device, display, team, start, time.monotonic() - began, check_folder)
    if plan.stored is not None:
        trainer.resume()
    elif team.first:
        plan.folder.mkdir(parents=True, exist_ok=True)
        save_config(plan.folder, config)
    if team.first and data.drawn and not (plan.folder / HELD_OUT).exists():
        replace_file(plan.folder / HELD_OUT, data.drawn.encode())
    parameters = sum(weight.numel() for weight in trainer.model.parameters())
    display.line(f"{_shown(config.training.corpus)}: {data.description}")
    display.line(
        f"{parameters:,} parameters; {device}{f' × {team.size} processes' if team.size > 1 else ''};"
        f" from step {trainer.position.step}"
    )
    if config.model.layers >= DEEP and not config.model.residual and trainer.position.step == 0:
        display.line(f"note: {config.model.layers} layers without --residual often learn only character frequencies")
    for note in data.notes if plan.stored is None else ():
        display.line(fill(f"note: {note}", COLUMNS, break_long_words=False, break_on_hyphens=False))
    with Interrupt() as interrupt, display:
        stopped = trainer.run(interrupt)
    if stopped:
        display.line(f"stopped at step {trainer.position.step}; continue with --resume")
        team.wait()  # torchrun ends all processes as soon as one has ended
        return 128 + stopped
    if trainer.summary:
        held_out = data.held_out.characters if data.held_out else 0
        for line in outcome(plan.folder, trainer.summary, held_out, config.training.keep == "best"):
            display.line(line)
    if interrupt.requested:
        display.line(f"interrupted too late: {plan.folder} is complete")
    return 0


def _shown(corpus: tuple[str, ...]) -> str:
    more = len(corpus) - SHOWN
    return " ".join(corpus[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _read_data(plan: Plan, start: Run | None, device: torch.device) -> tuple[RunConfig, Data]:
    """Read the corpus, settle the vocabulary, cut the data. Raises ConfigError, CorpusError, RunError."""
    model, training, stored = plan.model, plan.training, plan.stored
    source = read_sequences(training) if model.task == "tag" else read_texts(training)
    digest = source.digest()
    if stored is not None:
        if digest != stored.training.corpus_sha256:
            raise RunError(
                f"the text of {' '.join(training.corpus)} is not the one that {plan.folder} was started with;"
                " give the original text with --corpus, or choose another --out"
            )
    else:
        training = replace(training, corpus_sha256=digest)
    if not isinstance(source, TextSplit):
        symbols = (stored.vocabulary, stored.labels) if stored else source.vocabulary_and_labels()
        config = RunConfig(model, training, *symbols)
        return config, tagged_data(training, config.vocabulary, config.labels, source, device)
    if not has_symbols(training):
        config = RunConfig(model, training, stored.vocabulary if stored else _vocabulary(source, plan, start))
        return config, text_data(training, config.vocabulary, source, device)
    known = stored.vocabulary if stored else start.vocabulary if start else None
    cut = cut_split(source, training, known, plan.extend_vocabulary)
    vocabulary = stored.vocabulary if stored else _vocabulary_of_symbols(cut, plan, start)
    return RunConfig(model, training, vocabulary), symbol_data(
        training, vocabulary, source, recut(cut, vocabulary), device
    )


def _vocabulary_of_symbols(cut: CutSplit, plan: Plan, start: Run | None) -> Vocabulary:
    if start is None:
        return _checked(new_vocabulary(cut, plan.training), plan)
    if plan.extend_vocabulary:
        return _checked(extended_vocabulary(cut, start.vocabulary, plan.training), plan)
    refuse_unseen(start, cut)
    return _checked(start.vocabulary, plan)


def _vocabulary(texts: TextSplit, plan: Plan, start: Run | None) -> Vocabulary:
    if start is not None:
        vocabulary = vocabulary_from(start, texts.alphabet, plan.training.min_count, plan.extend_vocabulary)
    else:
        vocabulary = Vocabulary.of_text(texts.alphabet, plan.training.min_count)
    return _checked(vocabulary, plan)


def _checked(vocabulary: Vocabulary, plan: Plan) -> Vocabulary:
    """`vocabulary`, if it can predict something and encode all prefixes. Raises ConfigError, CorpusError."""
    if len(vocabulary) < 2:
        raise CorpusError(f"the corpus has one distinct symbol, {vocabulary.symbols[0]!r}; there is nothing to predict")
    for prefix in plan.training.prefix:
        try:
            vocabulary.encode(prefix)
        except UnknownCharacterError as error:
            raise ConfigError(f"--prefix {prefix!r}: {error}") from None
    return vocabulary
