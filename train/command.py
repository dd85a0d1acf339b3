"""Train a character model.

    python -m rill.train --corpus shakespeare --out runs/shakespeare --max-minutes 2
    python -m rill.train --corpus book.txt notes/ --out runs/mine --cell lstm --layers 2 --dropout 0.2 --epochs 10
    python -m rill.train --out runs/mine --resume
    python -m rill.train --recipe timemachine-gru --corpus timemachine.txt
    python -m rill.train --from runs/mine --corpus letters/ --out runs/letters --extend-vocabulary --epochs 3
    cat *.txt | python -m rill.train --corpus - --out runs/stdin --steps 2000
    torchrun --nproc-per-node 2 -m rill.train --corpus shakespeare --out runs/together --epochs 2

The run folder holds config.json, model.safetensors (best validation weights), trainer.pt (for --resume),
metrics.jsonl, samples.txt and, at the end, summary.json and curves.png. Losses are nats per character.
"""

import argparse
import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from rill.train.config import INITIALIZATIONS, OPTIMIZERS, PREPARATIONS, ModelConfig, TrainingConfig
from rill.train.errors import ConfigError, CorpusError, TrainError
from rill.train.loop.checkpoint import newest
from rill.train.loop.cpu import prepare_cpu
from rill.train.loop.device import resolve_device
from rill.train.loop.interrupt import Interrupt
from rill.train.loop.start import load_start, vocabulary_for
from rill.train.loop.team import Team
from rill.train.loop.trainer import SUMMARY, Trainer
from rill.train.record.display import Display
from rill.train.record.recipe import Recipe, load_recipe, recipe_names
from rill.train.record.run import CONFIG, RESUME_MAY_CHANGE, Run, RunConfig, RunError, load_config, save_config
from rill.train.text.data import Data, tagged_data, text_data
from rill.train.text.split import Texts, read_sequences, read_texts
from rill.vocabulary import UnknownCharacterError, Vocabulary

HORIZONS = ("steps", "epochs", "max_minutes")
DEFAULT_EPOCHS = 10
# Of each of these, an option that is given puts aside what a recipe says about the others.
ALTERNATIVES = (
    HORIZONS,
    ("evaluate_every", "evaluate_epochs"),
    ("validation", "validation_characters", "validation_corpus"),
)
MAY_DIFFER_FROM_START = ("dropout",)
DEEP = 4  # layers


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status: 0 done, 2 an error the user can mend, 128 + N stopped by signal N."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a sample that a terminal cannot show is no reason to stop
    team = Team()
    try:
        team.join()
        return _train(_parse(arguments, team), team)
    except (TrainError, OSError) as error:
        team.report(f"error: {error}")
        return 2
    except RuntimeError as error:
        if _out_of_memory(error):
            team.report("error: out of memory; use a smaller --batch, --window or --hidden")
        elif team.lost(error):
            team.report("error: another process of this run has ended; continue with --resume")
        else:
            raise
        return 2
    except KeyboardInterrupt:  # before training began, or a second time
        team.report("interrupted")
        return 130
    finally:
        team.leave()


def _parse(arguments: list[str] | None, team: Team) -> dict[str, Any]:
    """The options that were given. Process 0 alone prints --help and complaints."""
    nowhere = io.StringIO()
    with redirect_stdout(sys.stdout if team.first else nowhere), redirect_stderr(sys.stderr if team.first else nowhere):
        try:
            return vars(_parser().parse_args(arguments))
        except SystemExit:
            team.wait()  # torchrun ends all processes as soon as one has ended
            raise


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _train(options: dict[str, Any], team: Team) -> int:
    recipe = load_recipe(options.pop("recipe")) if "recipe" in options else None
    folder = _folder(options.pop("out", None), recipe)
    extend, resume = options.pop("extend_vocabulary"), options.pop("resume")
    stored = _stored(folder, resume)
    team.wait()  # before the first process writes into the folder
    display = Display(quiet=not team.first)
    if stored is not None and (folder / SUMMARY).exists():
        display.line(f"{folder} is complete")
        return 0
    start = _start(folder, stored, extend, options)
    model, training = _configure(folder, stored, recipe, start, options)
    if team.size > 1 and "-" in training.corpus + training.validation_corpus:
        raise ConfigError("several processes cannot share standard input; name a file")
    device = resolve_device(team.device(training.device))
    prepare_cpu(training.threads)

    config, data = _read_data(folder, stored, start, extend, model, training, device)
    trainer = Trainer(folder, config, data, device, display, team, start)
    if stored is not None:
        trainer.resume()
    elif team.first:
        folder.mkdir(parents=True, exist_ok=True)
        save_config(folder, config)
    parameters = sum(weight.numel() for weight in trainer.model.parameters())
    display.line(
        f"{' '.join(training.corpus)}: {data.description}; {parameters:,} parameters; {device}"
        f"{f' × {team.size} processes' if team.size > 1 else ''}; from step {trainer.position.step}"
    )
    if model.layers >= DEEP and not model.residual and trainer.position.step == 0:
        display.line(f"note: {model.layers} layers without --residual often learn nothing but character frequencies")
    with Interrupt() as interrupt, display:
        stopped = trainer.run(interrupt)
    if stopped:
        display.line(f"stopped at step {trainer.position.step}; continue with --resume")
        team.wait()  # torchrun ends all processes as soon as one has ended
        return 128 + stopped
    if interrupt.requested:
        display.line(f"interrupted too late: {folder} is complete")
    return 0


def _folder(out: str | None, recipe: Recipe | None) -> Path:
    if out is None and recipe is None:
        raise ConfigError("give --out, the run folder")
    return Path("runs", Path(recipe.name).stem) if out is None and recipe else Path(str(out))


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


def _start(folder: Path, stored: RunConfig | None, extend: bool, options: dict[str, Any]) -> Run | None:
    """The run whose weights this one begins with. A resumed run has them in its checkpoint, if it got that far."""
    start = options.get("start", stored.training.start if stored else "")
    if extend and not start:
        raise ConfigError("--extend-vocabulary is about a run that is continued on other text; give --from RUN too")
    return load_start(start, folder, stored) if start and not newest(folder) else None


def _configure(
    folder: Path, stored: RunConfig | None, recipe: Recipe | None, start: Run | None, options: dict[str, Any]
) -> tuple[ModelConfig, TrainingConfig]:
    """The stored, recipe's or default configuration with the given options put in. Raises ConfigError, RunError."""
    model_names = {field.name for field in fields(ModelConfig)}
    model_options = {name: value for name, value in options.items() if name in model_names}
    training_options = {name: value for name, value in options.items() if name not in model_names}
    if any(name in training_options for name in HORIZONS):
        training_options = dict.fromkeys(HORIZONS) | training_options
    if recipe is not None and not (stored is not None and stored.training.recipe == recipe.name):
        aside = {name for group in ALTERNATIVES if training_options.keys() & set(group) for name in group}
        values = {name: value for name, value in recipe.training.items() if name not in aside}
        model_options = recipe.model | model_options
        training_options = values | training_options | {"recipe": recipe.name}
    if stored is not None:
        return _as_before(folder, stored, model_options, training_options)
    if recipe is not None and "corpus" not in training_options:
        raise ConfigError(f"recipe {recipe.name} needs --corpus{f': {recipe.wants}' if recipe.wants else ''}")
    if not any(training_options.get(name) for name in HORIZONS):
        training_options["epochs"] = training_options.get("epochs", DEFAULT_EPOCHS)
    training = TrainingConfig(**training_options)
    if start is None:
        return ModelConfig(**model_options), training
    for name, value in model_options.items():
        if value != getattr(start.model, name) and name not in MAY_DIFFER_FROM_START:
            raise ConfigError(f"{start.folder} has {name} {getattr(start.model, name)!r}, not {value!r}")
    return replace(start.model, **model_options), training


def _as_before(
    folder: Path, stored: RunConfig, model_options: dict[str, Any], training_options: dict[str, Any]
) -> tuple[ModelConfig, TrainingConfig]:
    """The stored configuration, with what may change. Raises RunError for an option that may not."""
    for section, given in ((stored.model, model_options), (stored.training, training_options)):
        for name, value in given.items():
            before = getattr(section, name)
            if value != before and name not in RESUME_MAY_CHANGE:
                raise RunError(
                    f"{folder} was started with {name} {before!r}, not {value!r}; leave the option (or --recipe) out"
                    " to continue it, or choose another --out"
                )
    return stored.model, replace(stored.training, **training_options)


def _read_data(
    folder: Path,
    stored: RunConfig | None,
    start: Run | None,
    extend: bool,
    model: ModelConfig,
    training: TrainingConfig,
    device: torch.device,
) -> tuple[RunConfig, Data]:
    """Read the corpus, settle the vocabulary, cut the data. Raises ConfigError, CorpusError, RunError."""
    if not training.corpus:
        raise ConfigError("no text to train on; give --corpus")
    source = read_sequences(training) if model.task == "tag" else read_texts(training)
    digest = source.digest()
    if stored is not None:
        if digest != stored.training.corpus_sha256:
            raise RunError(f"the text of {' '.join(training.corpus)} is not the one that {folder} was started with")
        config = RunConfig(model, training, stored.vocabulary, stored.labels)
    else:
        training = replace(training, corpus_sha256=digest)
        if isinstance(source, Texts):
            config = RunConfig(model, training, _vocabulary(source, training, start, extend))
        else:
            config = RunConfig(model, training, *source.vocabulary_and_labels())
    if isinstance(source, Texts):
        return config, text_data(config, source, device)
    return config, tagged_data(config, source, device)


def _vocabulary(texts: Texts, training: TrainingConfig, start: Run | None, extend: bool) -> Vocabulary:
    if start is not None:
        vocabulary = vocabulary_for(start, texts.alphabet, training.min_count, extend)
    else:
        vocabulary = Vocabulary.of_text(texts.alphabet, training.min_count)
    if len(vocabulary) < 2:
        raise CorpusError(f"the corpus has one distinct symbol, {vocabulary.symbols[0]!r}; there is nothing to predict")
    for prefix in training.prefix:
        try:
            vocabulary.encode(prefix)
        except UnknownCharacterError as error:
            raise ConfigError(f"--prefix {prefix!r}: {error}") from None
    return vocabulary


def _parser() -> argparse.ArgumentParser:
    usage, _, description = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m rill.train",
        description=usage,
        epilog=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # only what was typed is in the result: defaults live in rill.train.config
    )
    parser.add_argument("--out", metavar="FOLDER", help="the run folder (with a recipe: runs/RECIPE)")
    parser.add_argument(
        "--corpus",
        nargs="+",
        action=_Tuple,
        metavar="SPEC",
        help="text files, folders (their .txt and .md files), - (standard input), shakespeare, sanguo or pydoc; to tag:"
        " JSON lines, or subtraction:BITS; needed unless a run is resumed or the recipe names one",
    )
    parser.add_argument(
        "--recipe", metavar="NAME", help=f"values of a published result: {', '.join(recipe_names())}, or a .toml file"
    )
    parser.add_argument("--resume", action="store_true", default=False, help="continue the run, or start it")
    parser.add_argument(
        "--from", dest="start", metavar="RUN", help="begin with the weights and the vocabulary of another run"
    )
    parser.add_argument(
        "--extend-vocabulary", action="store_true", default=False, help="add the characters that it never saw"
    )
    _add_data_options(parser.add_argument_group("data"))
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


def _add_data_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--prepare",
        choices=PREPARATIONS,
        help="letters: lower case and single spaces only; line: newlines become spaces (default none)",
    )
    group.add_argument("--characters", type=int, metavar="N", help="train on the first N (default 0: all)")
    group.add_argument("--validation", type=float, metavar="FRACTION", help="held-out end of the text (default 0.1)")
    group.add_argument(
        "--validation-characters", type=int, metavar="N", help="hold out the N characters after the first --characters"
    )
    group.add_argument(
        "--validation-corpus", nargs="+", action=_Tuple, metavar="SPEC", help="hold out another corpus instead"
    )
    group.add_argument(
        "--min-count", type=int, metavar="N", help="rarer characters become <unk> (default 1: every one is kept)"
    )


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--task", metavar="TASK", help="generate, or tag: label each symbol (default generate)")
    group.add_argument("--cell", metavar="CELL", help="gru, lstm or rnn, which is tanh (default gru)")
    group.add_argument("--reset", metavar="WHERE", help="GRU's reset gate: after or before the product (default after)")
    group.add_argument("--layers", type=int, metavar="N", help="recurrent layers (default 1)")
    group.add_argument("--hidden", type=int, metavar="N", help="units per layer (default 256)")
    group.add_argument("--embedding", type=int, metavar="N", help="embedding size, 0 = one-hot (default 0)")
    group.add_argument("--no-bias", dest="bias", action="store_false", help="recurrent layers without biases")
    group.add_argument("--residual", action="store_true", help="sums past the layers, from the second one on")
    group.add_argument("--bidirectional", action="store_true", help="read both ways (only to tag)")
    group.add_argument("--dropout", type=float, metavar="P", help="between layers and before the output (default 0)")


def _add_length_options(group: argparse._MutuallyExclusiveGroup) -> None:
    group.add_argument("--max-minutes", type=float, metavar="M", help="wall time, evaluation included")
    group.add_argument("--epochs", type=int, metavar="N", help=f"passes over the text (default {DEFAULT_EPOCHS})")
    group.add_argument("--steps", type=int, metavar="N", help="optimiser steps")


def _add_training_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--batch", type=int, metavar="N", help="windows a batch (default 32)")
    group.add_argument("--window", type=int, metavar="N", help="characters a window (default 64)")
    group.add_argument(
        "--sampling", metavar="HOW", help="sequential (state carried) or random windows (default sequential)"
    )
    group.add_argument("--accumulate", type=int, metavar="N", help="batches a step (default 1)")
    group.add_argument("--optimizer", choices=OPTIMIZERS, help="(default adamw)")
    group.add_argument("--momentum", type=float, metavar="M", help="of sgd and rmsprop (default 0)")
    group.add_argument("--learning-rate", type=float, metavar="R", help="the peak rate (default 0.005)")
    group.add_argument("--warmup", type=int, metavar="N", help="steps of linear warm-up (default 100)")
    group.add_argument("--schedule", metavar="HOW", help="after it: cosine, down to 1 %%, or constant (default cosine)")
    group.add_argument("--weight-decay", type=float, metavar="R", help="(default 0.01)")
    group.add_argument("--clip", type=float, metavar="N", help="largest gradient norm, 0 = any (default 1)")
    group.add_argument("--initialization", choices=INITIALIZATIONS, help="of the weights (default: PyTorch's)")
    group.add_argument("--scratch", action="store_true", help="compute cells by their written-out equations")
    group.add_argument("--precision", metavar="P", help="fp32, or bf16 autocast, for GPUs (default fp32)")
    group.add_argument(
        "--patience", type=int, metavar="N", help="stop after N evaluations without improvement (default 0: never)"
    )
    group.add_argument("--keep", metavar="WHICH", help="best (by validation) or last weights (default best)")
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
    group.add_argument("--evaluate-epochs", type=int, metavar="N", help="epochs instead of steps (default 0)")
    group.add_argument("--sample-every", type=int, metavar="N", help="evaluations, 0 = at the end only (default 4)")
    group.add_argument(
        "--prefix", nargs="+", action=_Tuple, metavar="TEXT", help="what samples begin with, several (default none)"
    )
    group.add_argument("--temperature", type=float, metavar="T", help="of the samples (default 0.8)")
