"""Train a character model.

    python -m train --corpus shakespeare --out runs/shakespeare --max-minutes 2
    python -m train --corpus book.txt notes/ --out runs/mine --hidden 512 --layers 2 --dropout 0.2 --epochs 10
    python -m train --out runs/mine --resume
    cat *.txt | python -m train --corpus - --out runs/stdin --steps 2000

The run folder holds config.json, model.safetensors (best validation weights), trainer.pt (for --resume),
metrics.jsonl, samples.txt and, at the end, summary.json and curves.png. Losses are nats per character.
"""

import argparse
import hashlib
import io
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from train.config import ModelConfig, TrainingConfig
from train.corpus import load_corpus
from train.cpu import prepare_cpu
from train.device import resolve_device
from train.display import Display
from train.errors import ConfigError, CorpusError, TrainError
from train.interrupt import Interrupt
from train.run import CONFIG, RESUME_MAY_CHANGE, RunConfig, RunError, load_config, save_config
from train.trainer import SUMMARY, Trainer
from train.vocab import UnknownCharacterError, Vocabulary

HORIZONS = ("steps", "epochs", "max_minutes")
DEFAULT_EPOCHS = 10


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status: 0 done, 2 an error the user can mend, 128 + N stopped by signal N."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a sample that a terminal cannot show is no reason to stop
    options = vars(_parser().parse_args(arguments))
    try:
        return _train(Path(options.pop("out")), options.pop("resume"), options)
    except (TrainError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before training began, or a second time
        print("interrupted", file=sys.stderr)
        return 130


def _train(folder: Path, resume: bool, options: dict[str, Any]) -> int:
    stored = _stored(folder, resume)
    display = Display()
    if stored is not None and (folder / SUMMARY).exists():
        display.line(f"{folder} is complete")
        return 0
    model, training = _configure(folder, stored, options)
    device = resolve_device(training.device)
    prepare_cpu(training.threads)

    config, text = _read_corpus(folder, stored, model, training)
    trainer = Trainer(folder, config, text, device, display)
    if stored is None:
        folder.mkdir(parents=True, exist_ok=True)
        save_config(folder, config)
    else:
        trainer.resume()
    _describe(trainer, text)
    with Interrupt() as interrupt, display:
        completed = trainer.run(interrupt)
    if interrupt.requested:
        display.line(
            f"interrupted too late: {folder} is complete"
            if completed
            else f"stopped at step {trainer.position.step}; continue with --resume"
        )
    return 0 if completed else 128 + interrupt.requested


def _stored(folder: Path, resume: bool) -> RunConfig | None:
    """The configuration of the run in `folder` if there is one to resume. Raises RunError if one is in the way."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; give a folder")
    if not folder.exists() or all(path.suffix == ".tmp" for path in folder.iterdir()):
        return None
    if not (folder / CONFIG).exists():
        raise RunError(f"{folder} is not empty and is no run folder: it has no {CONFIG}; give another --out")
    if not resume:
        raise RunError(f"{folder} already holds a run; continue it with --resume or choose another --out")
    return load_config(folder)


def _configure(folder: Path, stored: RunConfig | None, options: dict[str, Any]) -> tuple[ModelConfig, TrainingConfig]:
    """The stored or default configuration with the given options put in. Raises ConfigError, RunError."""
    model_names = {field.name for field in fields(ModelConfig)}
    model_options = {name: value for name, value in options.items() if name in model_names}
    training_options = {name: value for name, value in options.items() if name not in model_names}
    if not any(name in options for name in HORIZONS):
        training_options |= {} if stored else {"epochs": DEFAULT_EPOCHS}
    else:
        training_options = dict.fromkeys(HORIZONS) | training_options
    if stored is None:
        return ModelConfig(**model_options), TrainingConfig(**training_options)
    for section, given in ((stored.model, model_options), (stored.training, training_options)):
        for name, value in given.items():
            before = getattr(section, name)
            if value != before and name not in RESUME_MAY_CHANGE:
                raise RunError(
                    f"{folder} was started with {name} {before!r}, not {value!r}; leave the option out to continue it,"
                    " or choose another --out"
                )
    return stored.model, replace(stored.training, **training_options)


def _read_corpus(
    folder: Path, stored: RunConfig | None, model: ModelConfig, training: TrainingConfig
) -> tuple[RunConfig, str]:
    if not training.corpus:
        raise ConfigError("no text to train on; give --corpus")
    text = load_corpus(training.corpus)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if stored is not None:
        if digest != stored.training.corpus_sha256:
            raise RunError(f"the text of {' '.join(training.corpus)} is not the one that {folder} was started with")
        return RunConfig(model, training, stored.vocabulary), text
    vocabulary = Vocabulary.of_text(text, training.min_count)
    if len(vocabulary) < 2:
        raise CorpusError(f"the corpus has one distinct symbol, {vocabulary.symbols[0]!r}; there is nothing to predict")
    for prefix in training.prefix:
        try:
            vocabulary.encode(prefix)
        except UnknownCharacterError as error:
            raise ConfigError(f"--prefix {prefix!r}: {error}") from None
    return RunConfig(model, replace(training, corpus_sha256=digest), vocabulary), text


def _describe(trainer: Trainer, text: str) -> None:
    training, held_out = trainer.training, trainer.held_out
    parameters = sum(weight.numel() for weight in trainer.model.parameters())
    trainer.display.line(
        f"{' '.join(training.corpus)}: {len(text):,} characters, {len(trainer.config.vocabulary):,} distinct,"
        f" {held_out.characters if held_out else 0:,} held out; {parameters:,} parameters; {trainer.device};"
        f" from step {trainer.position.step}"
    )


def _parser() -> argparse.ArgumentParser:
    usage, _, description = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m train",
        description=usage,
        epilog=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # only what was typed is in the result: defaults live in train.config
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="the run folder")
    parser.add_argument(
        "--corpus",
        nargs="+",
        action=_Tuple,
        metavar="SPEC",
        help="text files, folders (their .txt and .md files), - (standard input), shakespeare, sanguo or pydoc;"
        " needed unless a run is resumed",
    )
    parser.add_argument("--resume", action="store_true", default=False, help="continue the run, or start it")
    _add_model_options(parser.add_argument_group("model"))
    _add_length_options(parser.add_argument_group("length of the run, one of").add_mutually_exclusive_group())
    _add_training_options(parser.add_argument_group("training"))
    _add_report_options(parser.add_argument_group("evaluation and samples"))
    return parser


class _Tuple(argparse.Action):
    """Several values as a tuple, as the frozen configurations hold them."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        setattr(namespace, self.dest, tuple(values))


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--cell", help="recurrent cell: gru (default gru)")
    group.add_argument("--reset", help="where the GRU's reset gate acts: after (default after)")
    group.add_argument("--layers", type=int, metavar="N", help="stacked layers (default 1)")
    group.add_argument("--hidden", type=int, metavar="N", help="hidden units a layer (default 256)")
    group.add_argument("--embedding", type=int, metavar="N", help="embedding size, 0 = one-hot input (default 0)")
    group.add_argument("--no-bias", dest="bias", action="store_false", help="cells without bias (default with)")
    group.add_argument(
        "--dropout", type=float, metavar="P", help="between layers and before the output layer (default 0)"
    )


def _add_length_options(group: argparse._MutuallyExclusiveGroup) -> None:
    group.add_argument("--max-minutes", type=float, metavar="M", help="wall time, validation included")
    group.add_argument("--epochs", type=int, metavar="N", help=f"passes over the text (default {DEFAULT_EPOCHS})")
    group.add_argument("--steps", type=int, metavar="N", help="optimiser steps")


def _add_training_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--batch", type=int, metavar="N", help="windows a step (default 32)")
    group.add_argument("--window", type=int, metavar="N", help="characters a window (default 64)")
    group.add_argument(
        "--sampling", metavar="HOW", help="sequential (state carried) or random windows (default sequential)"
    )
    group.add_argument("--learning-rate", type=float, metavar="R", help="AdamW's peak rate (default 0.005)")
    group.add_argument("--weight-decay", type=float, metavar="R", help="AdamW's weight decay (default 0.01)")
    group.add_argument("--clip", type=float, metavar="N", help="largest gradient norm (default 1)")
    group.add_argument("--validation", type=float, metavar="FRACTION", help="held-out end of the text (default 0.1)")
    group.add_argument(
        "--min-count", type=int, metavar="N", help="rarer characters become <unk> (default 1: every one is kept)"
    )
    group.add_argument("--seed", type=int, metavar="N", help="of weights, dropout and random windows (default 0)")
    group.add_argument("--device", metavar="D", help="auto, cpu, cuda or cuda:N (default auto)")
    group.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads, 0 = one a core, or under --max-minutes one in all where that is faster (default 0)",
    )


def _add_report_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--evaluate-every", type=int, metavar="N", help="steps, 0 = twenty times over the run (default 0)"
    )
    group.add_argument("--sample-every", type=int, metavar="N", help="evaluations, 0 = at the end only (default 4)")
    group.add_argument(
        "--prefix", nargs="+", action=_Tuple, metavar="TEXT", help="what samples begin with, several (default none)"
    )
    group.add_argument("--temperature", type=float, metavar="T", help="of the samples (default 0.8)")


if __name__ == "__main__":
    sys.exit(main())
