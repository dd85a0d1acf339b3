"""Run one job, and record its result: a row of the closing table."""

import time
from dataclasses import dataclass
from typing import Any

from rill.export.foreign.preview import preview
from rill.export.foreign.run import foreign_run
from rill.export.jobs import Job
from rill.export.pipeline import Exported, OnProgress, export_loaded, export_run


@dataclass(frozen=True)
class Row:
    """The result of a job. If it failed, `exported` is None and `error` says why."""

    job: Job
    seconds: float
    exported: Exported | None = None
    error: str = ""
    notes: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """`ok`, `unchanged` or `failed`."""
        if self.exported is None:
            return "failed"
        return "unchanged" if self.exported.unchanged and not self.job.check else "ok"

    @property
    def bits_per_char(self) -> tuple[float | None, float | None]:
        """Bits per character of this bundle and of the same model in fp32, if they were measured."""
        loss = self.exported.loss if self.exported else None
        return (loss.bits_per_char, loss.bits_per_char_fp32) if loss else (None, None)

    def to_json(self) -> dict[str, Any]:
        """The row as --json writes it."""
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


def run_job(job: Job, on_progress: OnProgress) -> Row:
    """Run one job. Raises nothing: any error is in the row."""
    started = time.monotonic()
    try:
        if job.problem:
            raise ValueError(job.problem)
        exported, notes = _export(job, on_progress)
    except (ValueError, OSError) as error:
        return Row(job, time.monotonic() - started, error=str(error))
    except Exception as error:  # unforeseen: of ONNX Runtime, PyTorch or ours
        return Row(job, time.monotonic() - started, error=f"{type(error).__name__}: {error}")
    return Row(job, time.monotonic() - started, exported, notes=notes)


def _export(job: Job, on_progress: OnProgress) -> tuple[Exported, tuple[str, ...]]:
    options = (job.out, job.precision, job.force, job.check, job.allow_loss, on_progress)
    if job.checkpoint is None:
        return export_run(job.source, *options), ()
    on_progress("reading the state dict")
    foreign = job.checkpoint
    run = foreign_run(foreign.path, foreign.vocabulary, foreign.rename, foreign.reset, foreign.update, foreign.symbols)
    on_progress("making a sample")
    notes = (*run.notes, *preview(run, foreign.text))
    return export_loaded(run, job.name, *options), notes
