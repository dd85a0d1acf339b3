"""The bundle that ships with Rill, a small model of Shakespeare's plays: a first text without training."""

from pathlib import Path

NAME = "shakespeare"


def bundle_folder() -> Path:
    """Return the folder of the bundle; its name is the model's name."""
    return Path(__file__).parent / NAME
