"""One call's exports: what is to be done for each bundle, doing it, and what became of it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rill.export.foreign.run import foreign_run
from rill.export.pipeline import Exported, Tell, export_loaded, export_run


@dataclass(frozen=True)
class Checkpoint:
    """A foreign state dict's file and how it is to be read (`rill.export.foreign.run`)."""

    path: Path
    vocabulary: Path
    rename: Mapping[str, str] = field(default_factory=dict)
    reset: str = "after"
    update: str = "keeps"


@dataclass(frozen=True)
class Job:
    """One bundle to make or to check. `source` is the run folder or file as the user named it.

    `problem` is why it cannot be done, where that is known already.
    """

    source: str
    name: str
    out: Path
    precision: str = "fp32"
    force: bool = False
    check: bool = False
    allow_loss: bool = False
    checkpoint: Checkpoint | None = None
    problem: str = ""

    def __str__(self) -> str:
        return self.source if self.precision == "fp32" else f"{self.source} ({self.precision})"


@dataclass(frozen=True)
class Row:
    """What became of a job: a row of the closing table. `exported` is None, and `error` says why, if it failed."""

    job: Job
    seconds: float
    exported: Exported | None = None
    error: str = ""
    notes: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """For people and for --json."""
        if self.exported is None:
            return "failed"
        return "unchanged" if self.exported.unchanged and not self.job.check else "ok"

    @property
    def bits_per_char(self) -> tuple[float | None, float | None]:
        """Of this bundle and of the same model in fp32, where they were measured."""
        loss = self.exported.loss if self.exported else None
        return (loss.bits_per_char, loss.bits_per_char_fp32) if loss else (None, None)

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        exported = self.exported
        return {
            "run": self.job.source,
            "precision": self.job.precision,
            "bundle": str(exported.folder) if exported else None,
            "bytes": exported.size if exported else None,
            "difference": exported.parity.worst_difference if exported else None,
            "bits_per_char": self.bits_per_char[0],
            "bits_per_char_fp32": self.bits_per_char[1],
            "loss_measured_on": exported.loss.text if exported and exported.loss else None,
            "parity": exported.parity.report() if exported else None,
            "notes": list(self.notes),
            "status": self.status,
            "error": self.error or None,
            "seconds": round(self.seconds, 1),
        }


def do(job: Job, tell: Tell) -> Row:
    """Do one job; whatever goes wrong with it is in the row."""
    started = time.monotonic()
    try:
        if job.problem:
            raise ValueError(job.problem)
        exported, notes = _export(job, tell)
    except (ValueError, OSError) as error:
        return Row(job, time.monotonic() - started, error=str(error))
    except Exception as error:  # not foreseen: ONNX Runtime's, PyTorch's, ours
        return Row(job, time.monotonic() - started, error=f"{type(error).__name__}: {error}")
    return Row(job, time.monotonic() - started, exported, notes=notes)


def _export(job: Job, tell: Tell) -> tuple[Exported, tuple[str, ...]]:
    how = (job.out, job.precision, job.force, job.check, job.allow_loss, tell)
    if job.checkpoint is None:
        return export_run(job.source, *how), ()
    tell("reading the state dict")
    foreign = job.checkpoint
    run = foreign_run(foreign.path, foreign.vocabulary, foreign.rename, foreign.reset, foreign.update)
    return export_loaded(run, job.name, *how), run.notes
