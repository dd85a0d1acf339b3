"""Small models with random weights, their run folders and bundles."""

import string
from pathlib import Path

import torch

from rill.bundle import Bundle
from rill.export.graphs.build import build_bundle
from rill.export.write import manifest_of, write_bundle
from rill.train.config import ModelConfig, TrainingConfig
from rill.train.nets.model import CharacterModel
from rill.train.record.folder import RunConfig, save_config
from rill.train.record.run import Run, save_weights
from rill.vocabulary import Vocabulary

LETTERS = tuple(sorted(string.ascii_letters + " \n.,é"))


# Molecules as SMILES strings: symbols of several characters, a start and an end.
MOLECULES = Vocabulary(
    ("<start>", *"#()12=CNOcn", "%10", "Br", "Cl", "[nH]", "<end>"),
    r"regex:\[[^\]]{1,20}\]|Br|Cl|%\d{2}|.",
    "<start>",
    ("<end>",),
)


def make_run(symbols: tuple[str, ...] | Vocabulary = LETTERS, seed: int = 0, **config: object) -> Run:
    """A run in memory: a model with random weights, its output layer scaled so that texts are varied but no noise."""
    vocabulary = symbols if isinstance(symbols, Vocabulary) else Vocabulary(symbols)
    torch.manual_seed(seed)
    model_config = ModelConfig(**{"hidden": 32, **config})  # type: ignore[arg-type]
    model = CharacterModel(model_config, len(vocabulary))
    with torch.no_grad():
        model.linear.weight *= 6
        for table in model.ngrams.parameters() if model.ngrams is not None else ():  # zero in a new model
            table.normal_()
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return Run(Path("tiny"), model_config, TrainingConfig(steps=1), vocabulary, (), weights)


def save_run(run: Run, folder: Path) -> Path:
    """The run as a run folder on disk."""
    folder.mkdir(parents=True)
    save_config(folder, RunConfig(run.model, run.training, run.vocabulary))
    save_weights(folder, run.build())
    return folder


def save_bundle(run: Run, folder: Path) -> Bundle:
    """The run's bundle on disk, unverified: what verification does has tests of its own."""
    bundle = build_bundle(run, folder.name)
    write_bundle(bundle, manifest_of(bundle, {}, {}), folder)
    return bundle


SENTENCES = "the time traveller for so it will be convenient to speak of him was expounding a recondite matter to us\n"
