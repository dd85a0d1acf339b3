"""The training loop: truncated backpropagation through time, evaluation, checkpoints."""

import json
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from train.checkpoint import CHECKPOINT, Position, load_checkpoint, save_checkpoint
from train.cpu import FasterThreads
from train.curves import draw_curves
from train.display import Display, perplexity
from train.errors import ConfigError, DivergedError
from train.files import replace_file, truncate_file
from train.held_out import HeldOut
from train.interrupt import Interrupt
from train.model import CharacterModel
from train.run import RunConfig, load_run, save_weights
from train.sample import generate
from train.windows import RandomWindows, SequentialWindows, Windows, split

METRICS = "metrics.jsonl"
SAMPLES = "samples.txt"
SUMMARY = "summary.json"
CURVES = "curves.png"

AUTOMATIC_EVALUATIONS = 20
EVALUATED_CHARACTERS = 512  # of each of the 64 held-out tracks, during the run; the whole of them at the end
LARGEST_RESERVE = 0.1  # of --max-minutes, kept for the end
CHECKPOINT_SECONDS = 30.0  # at most this much work is lost
SAMPLE_LENGTH = 200
# With a tenth of this warm-up, a GRU at 5e-3 can end with a state that drifts over long texts, and never recovers.
WARMUP_STEPS = 100
FINAL_RATE = 0.01


def learning_rate_factor(step: int, done: float) -> float:
    """Linear warm-up over the first 100 steps, times a cosine down to 1 %; `done` is the run's share, 0 to 1."""
    cosine = FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return min(1.0, (step + 1) / WARMUP_STEPS) * cosine


class Trainer:
    """One run: `Trainer(...)` checks that it can be trained, `run` trains it to its end or to an interruption."""

    def __init__(self, folder: Path, config: RunConfig, text: str, device: torch.device, display: Display) -> None:
        self.folder, self.config, self.training = folder, config, config.training
        self.device, self.display = device, display
        ids = torch.tensor(config.vocabulary.encode(text), device=device)
        training_ids, held_out_ids = split(ids, self.training.validation)
        self.windows = self._windows(training_ids)
        self.held_out = HeldOut(held_out_ids, self.training.window) if self.training.validation else None

        torch.manual_seed(self.training.seed)
        self.model = _build(config, device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=self.training.learning_rate,
            weight_decay=self.training.weight_decay,
            fused=True,
        )
        self.position = Position()
        self._started = time.monotonic()
        self._last_checkpoint = self._started
        self._reserved_seconds = 0.0  # for the end of a run whose length is a time

    def _windows(self, ids: torch.Tensor) -> Windows:
        batch, window = self.training.batch, self.training.window
        if self.training.sampling == "random":
            return RandomWindows(ids, batch, window, self.training.seed)
        return SequentialWindows(ids, batch, window)

    def resume(self) -> None:
        """Go back to where trainer.pt stands, or to the beginning if there is none yet. Raises RunError."""
        if (self.folder / CHECKPOINT).exists():
            zero = self.model.initial_state(self.training.batch) if self.windows.carried else None
            self.position = load_checkpoint(self.folder, self.config, self.model, self.optimizer, zero)
        self._started = time.monotonic() - self.position.seconds
        truncate_file(self.folder / METRICS, self.position.metrics_bytes)
        truncate_file(self.folder / SAMPLES, self.position.samples_bytes)

    def run(self, interrupt: Interrupt) -> bool:
        """Train to the end and write the summary, or save a checkpoint and return as soon as `interrupt` is set.

        True if it came to the end. At least one step is taken, however short --max-minutes. Raises DivergedError when
        the loss, the gradient or a weight is no longer finite; the last checkpoint stays as it was.
        """
        if self.training.max_minutes is not None:
            self._validate()
        threads = FasterThreads() if self.training.max_minutes is not None and not self.training.threads else None
        while ((done := self.done()) < 1 or self.position.step == 0) and not interrupt.requested:
            with threads.step() if threads else nullcontext():
                self._step(done)
            if self._evaluation_is_due():
                self._evaluate()
            elif time.monotonic() - self._last_checkpoint > CHECKPOINT_SECONDS:
                self._checkpoint()
        if interrupt.requested:
            self._checkpoint()
            if self.position.evaluations == 0:  # nothing to call best yet, but a usable folder
                save_weights(self.folder, self.model)
            return False
        if self.position.loss_chars:
            self._evaluate()
        self._finish()
        return True

    def done(self) -> float:
        """How much of the run is behind us, from 0 to 1."""
        if self.training.max_minutes is not None:
            available = max(self.training.max_minutes * 60 - self._reserved_seconds, 1e-9)
            return (time.monotonic() - self._started) / available
        return self.position.step / self.total_steps

    @property
    def total_steps(self) -> int:
        """Optimiser steps in the whole run; for runs by steps or epochs."""
        if self.training.steps is not None:
            return self.training.steps
        assert self.training.epochs is not None
        return self.training.epochs * len(self.windows)

    def _step(self, done: float) -> None:
        position = self.position
        epoch, index = divmod(position.step, len(self.windows))
        inputs, targets = self.windows.batch(epoch, index)
        state = position.state if index and self.windows.carried else None
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.learning_rate * learning_rate_factor(position.step, done)

        logits, state = self.model(inputs, state)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip)
        nats = loss.item()
        if not math.isfinite(nats + norm.item()):
            raise self._diverged(
                f"the loss diverged at step {position.step + 1} (loss {nats:g}, gradient norm {norm.item():g})"
            )
        self.optimizer.step()

        position.step += 1
        position.state = tuple(part.detach() for part in state) if self.windows.carried else None
        position.chars += targets.numel()
        position.loss_sum += nats * targets.numel()
        position.loss_chars += targets.numel()
        position.seconds = time.monotonic() - self._started
        self.display.progress(done, position.step, position.loss_sum / position.loss_chars, self._speed())

    def _diverged(self, what: str) -> DivergedError:
        kept = "the last good checkpoint is kept; " if (self.folder / CHECKPOINT).exists() else ""
        return DivergedError(f"{what}; {kept}start again in another --out with a smaller --learning-rate or --clip")

    def _require_finite_weights(self) -> None:
        if not all(weight.isfinite().all() for weight in self.model.parameters()):
            raise self._diverged(f"the weights diverged at step {self.position.step}")

    def _speed(self) -> float:
        """Characters per second since the last line of metrics.jsonl."""
        return self.position.loss_chars / max(self.position.seconds - self.position.seconds_of_last_line, 1e-9)

    def _evaluation_is_due(self) -> bool:
        if self.training.evaluate_every:
            return self.position.step % self.training.evaluate_every == 0
        return self.done() * AUTOMATIC_EVALUATIONS >= self.position.evaluations + 1

    def _evaluate(self) -> None:
        """Close a line of metrics.jsonl; keep the weights if they are the best so far; sample if it is time to.

        Nothing is printed before the checkpoint is saved: where output goes may be gone.
        """
        self._require_finite_weights()
        position = self.position
        position.train_loss = position.loss_sum / position.loss_chars
        speed = self._speed()
        val_loss = self._validate()
        if val_loss is not None and not math.isfinite(val_loss):
            raise self._diverged(f"the validation loss became {val_loss} at step {position.step}")
        if val_loss is None or position.best_val_loss is None or val_loss < position.best_val_loss:
            save_weights(self.folder, self.model)
            position.best_val_loss, position.best_step = val_loss, position.step
        position.evaluations += 1
        position.seconds = time.monotonic() - self._started
        metrics = {
            "step": position.step,
            "epoch": round(position.step / len(self.windows), 4),
            "chars": position.chars,
            "train_loss": position.train_loss,
            "val_loss": val_loss,
            "perplexity": perplexity(position.train_loss),
            "bits_per_char": None if val_loss is None else val_loss / math.log(2),
            "chars_per_second": round(speed, 1),
            "seconds": round(position.seconds, 3),
        }
        position.metrics_bytes += _append(self.folder / METRICS, json.dumps(metrics) + "\n")
        every = self.training.sample_every
        samples = self._sample(self.model) if every and position.evaluations % every == 0 and self.done() < 1 else []
        position.loss_sum, position.loss_chars = 0.0, 0
        position.seconds_of_last_line = time.monotonic() - self._started
        self._checkpoint()
        self.display.evaluation(metrics)
        self.display.samples(samples)

    def _sample(self, model: CharacterModel) -> list[str]:
        """A sample for every prefix, appended to samples.txt."""
        training, samples = model.training, []
        model.eval()
        for prefix in self.training.prefix:
            text = generate(
                model, self.config.vocabulary, prefix, SAMPLE_LENGTH, self.training.temperature, self.training.seed
            )
            header = f"--- step {self.position.step}, prefix {prefix!r}, temperature {self.training.temperature:g}"
            sample = f"{header}\n{prefix}{text}\n\n"
            self.position.samples_bytes += _append(self.folder / SAMPLES, sample)
            samples.append(sample)
        model.train(training)
        return samples

    def _checkpoint(self) -> None:
        self._require_finite_weights()
        self.position.seconds = time.monotonic() - self._started
        save_checkpoint(self.folder, self.config, self.position, self.model, self.optimizer)
        self._last_checkpoint = time.monotonic()

    def _validate(self) -> float | None:
        """The loss on part of the held-out text; timed, because under --max-minutes the last pass counts too."""
        if self.held_out is None:
            return None
        started = time.monotonic()
        loss = self.held_out.loss(self.model, EVALUATED_CHARACTERS)
        if self.training.max_minutes is not None:
            length = self.held_out.inputs.shape[1]
            whole = (time.monotonic() - started) * length / min(length, EVALUATED_CHARACTERS)
            # A machine that was busy for a moment must not end the run early.
            self._reserved_seconds = min(whole + 1, LARGEST_RESERVE * self.training.max_minutes * 60)
        return loss

    def _finish(self) -> None:
        """Measure the weights that were kept on the whole held-out text; write curves, last samples and the summary."""
        best = load_run(self.folder).build().to(self.device)
        val_loss = None if self.held_out is None else self.held_out.loss(best)
        samples = self._sample(best)
        draw_curves(self.folder / METRICS, self.folder / CURVES)
        position = self.position
        seconds = time.monotonic() - self._started
        summary: dict[str, Any] = {
            "val_loss": val_loss,
            "step": position.best_step,
            "steps": position.step,
            "train_loss": position.train_loss,
            "bits_per_char": None if val_loss is None else val_loss / math.log(2),
            "chars": position.chars,
            "chars_per_second": round(position.chars / seconds, 1),
            "seconds": round(seconds, 3),
            "parameters": sum(weight.numel() for weight in self.model.parameters()),
            "val_chars": 0 if self.held_out is None else self.held_out.characters,
        }
        replace_file(self.folder / SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())
        self.display.samples(samples)


def _build(config: RunConfig, device: torch.device) -> CharacterModel:
    try:
        return CharacterModel(config.model, len(config.vocabulary)).to(device)
    except (RuntimeError, TypeError):  # PyTorch raises the one for too much memory, the other beyond 64 bits
        model = config.model
        raise ConfigError(
            f"a model with layers {model.layers}, hidden {model.hidden} and embedding {model.embedding} does not fit in"
            f" the memory of {device}; make it smaller"
        ) from None


def _append(path: Path, text: str) -> int:
    """Append `text` to `path`; its length in bytes."""
    data = text.encode()
    with path.open("ab") as file:
        file.write(data)
    return len(data)
