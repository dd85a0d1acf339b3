"""Comparing and interrupting runs."""

import json
import signal
from pathlib import Path

import torch


def lines(folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without the fields that depend on time."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: e[key] for key in e if key not in ("seconds", "chars_per_second")} for e in entries]


def assert_same_run(one: Path, other: Path) -> None:
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert lines(one) == lines(other)
    assert (one / "samples.txt").read_text() == (other / "samples.txt").read_text()
    states = [torch.load(folder / "trainer.pt", weights_only=True) for folder in (one, other)]
    for name, weight in states[0]["model"].items():
        assert torch.equal(weight, states[1]["model"][name])


class InterruptAfter:
    """Replaces Interrupt: a signal is requested after `checks` checks."""

    def __init__(self, checks: int) -> None:
        self.checks = checks

    @property
    def requested(self) -> int:
        self.checks -= 1
        return signal.SIGINT if self.checks < 0 else 0

    def __enter__(self) -> "InterruptAfter":
        return self

    def __exit__(self, *error: object) -> None:
        pass
