"""The training loop: truncated backpropagation through time, evaluation, checkpoints."""

import json
import math
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rill.train.errors import ConfigError, DivergedError
from rill.train.loop.checkpoint import Position, load_checkpoint, save_checkpoint
from rill.train.loop.cpu import FasterThreads
from rill.train.loop.interrupt import Interrupt
from rill.train.loop.optimizer import learning_rate, make_optimizer
from rill.train.loop.start import copy_weights
from rill.train.loop.team import Team
from rill.train.loop.time_limit import TimeLimit
from rill.train.nets.cells import State
from rill.train.nets.initialization import initialize
from rill.train.nets.model import CharacterModel
from rill.train.nets.sample import generate
from rill.train.record.curves import draw_curves
from rill.train.record.display import Display, perplexity
from rill.train.record.files import append_file, replace_file, truncate_file
from rill.train.record.folder import CHECKPOINT, CURVES, METRICS, SAMPLES, SUMMARY, RunConfig, checkpoints
from rill.train.record.run import Run, load_run, save_weights
from rill.train.record.tensorboard import TensorBoard
from rill.train.text.data import Data
from rill.train.text.held_out import Measurement
from rill.train.text.windows import IGNORED

AUTOMATIC_EVALUATIONS = 20
EVALUATED_CHARACTERS = 2048  # of each of the 16 held-out tracks, during the run; at the end, all of them
FEWEST_CHARACTERS = 64  # of each track, where --max-minutes leaves no time for more
CHECKPOINT_SECONDS = 30.0  # at most this much work is lost
SAMPLE_LENGTH = 200  # of a line, half as many
SAMPLED_LINES = 8  # for each prefix
WORTH_SEEING = 0.65  # of the entropy of single symbols: a sample of a model with a larger loss looks like noise


class Trainer:
    """One run: `Trainer(...)` checks that it can be trained; `run` trains it until it ends or is interrupted.

    With a `team` of several processes, each trains on its rows of every batch, and the first one writes the run folder.
    The process was started `elapsed` seconds ago, which count as time of a run under --max-minutes. `check_folder`,
    which raises RunError if the folder is another run's by now, is called before anything is written. Raises
    ConfigError if the model does not fit in memory or the processes cannot share the run.
    """

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        data: Data,
        device: torch.device,
        display: Display,
        team: Team,
        start: Run | None = None,
        elapsed: float = 0.0,
        check_folder: Callable[[], object] = lambda: None,
    ) -> None:
        self.folder, self.config, self.training = folder, config, config.training
        self._check_folder = check_folder
        self.device, self.display, self.team = device, display, team
        self.windows, self.held_out = data.windows, data.held_out
        self._rows = team.rows(self.training.batch)
        if team.size > 1 and config.labels:
            raise ConfigError("a tagger trains in one process")

        torch.manual_seed(self.training.seed)
        self.model = _build(config, device)
        if start is not None:
            copy_weights(self.model, config.vocabulary, start)
        self.network: nn.Module = DistributedDataParallel(self.model) if team.size > 1 else self.model
        self.optimizer = make_optimizer(self.model.named_parameters(), self.training)
        self.steps_per_epoch = math.ceil(len(self.windows) / self.training.accumulate)
        self.position = Position()
        self._started = time.monotonic()
        self._last_checkpoint = self._started
        self._process_started = self._started - elapsed
        self._limit: TimeLimit | None = None
        self._part = EVALUATED_CHARACTERS  # of each held-out track, during the run
        self.summary: dict[str, Any] = {}  # what summary.json holds, once the run is complete
        self._kept: Measurement | None = None  # of the weights to keep, if this process has measured them

    def resume(self) -> None:
        """Continue from the newest good checkpoint, or from the beginning if there is none. Raises RunError."""
        if checkpoints(self.folder):
            zero = self.model.initial_state(self.training.batch) if self.windows.carried else None
            self.position, notice = load_checkpoint(self.folder, self.config, self.model, self.optimizer, zero)
            if notice:
                self.display.line(notice)
                if self.team.first:  # otherwise the next checkpoint would replace the good one by the damaged one
                    (self.folder / CHECKPOINT).unlink(missing_ok=True)
        if self.position.state is not None:
            self.position.state = tuple(part[:, self._rows].contiguous() for part in self.position.state)
        self._started = time.monotonic() - self.position.seconds
        if self.team.first:
            truncate_file(self.folder / METRICS, self.position.metrics_bytes)
            truncate_file(self.folder / SAMPLES, self.position.samples_bytes)

    def run(self, interrupt: Interrupt) -> int:
        """Train to the end and write the summary, or save a checkpoint and return as soon as `interrupt` is set.

        Returns 0 at the end, otherwise the number of the signal, whichever process received it. Takes at least one
        step, however short --max-minutes is. Raises DivergedError when the loss, the gradient or a weight is no longer
        finite; the last checkpoint is then left unchanged.
        """
        timed = self.training.max_minutes is not None
        threads = FasterThreads() if timed and not self.training.threads and self.team.size == 1 else None
        board = TensorBoard(self.folder, self.position.step) if self.team.first else None
        with closing(board) if board else nullcontext():
            limit = self._begin_limit()
            while True:
                steps = self.position.step - self.position.evaluated_step
                done, stop, overdue, due = self.team.maximum(
                    self.done(),
                    interrupt.requested,
                    time.monotonic() - self._last_checkpoint > CHECKPOINT_SECONDS,
                    limit.evaluation_is_due(steps) if limit else 0,
                )
                if stop:
                    self._stop()
                    return int(stop)
                if self._evaluation_is_due(done, bool(due)):
                    with limit.evaluation() if limit else nullcontext():
                        self._evaluate(done, board)
                elif overdue and self.position.step:
                    self._checkpoint()
                if (done >= 1 and self.position.step) or self._has_stalled():
                    break
                with threads.step() if threads else nullcontext(), limit.step() if limit else nullcontext():
                    self._step(done)
        self._finish()
        return 0

    def _begin_limit(self) -> TimeLimit | None:
        """The time limit of a run under --max-minutes. Measures the model once, to learn what an evaluation takes."""
        if self.training.max_minutes is None:
            return None
        elapsed = time.monotonic() - self._process_started
        spent = self.position.seconds
        limit = self._limit = TimeLimit(self.training.max_minutes, elapsed, spent, time.monotonic, time.thread_time)
        share = 0.0  # of the held-out data, for an evaluation
        if self.held_out is not None:
            self.held_out.measure(self.model, FEWEST_CHARACTERS)  # the first pass is slower than others
            self._measure(self.model, EVALUATED_CHARACTERS, limit.end_of_first())
            usual = self.held_out.part(EVALUATED_CHARACTERS) / self.held_out.characters
            affordable = min(1.0, -self.team.maximum(-limit.affordable)[0] / usual)
            self._part = max(FEWEST_CHARACTERS, int(affordable * EVALUATED_CHARACTERS))
            share = affordable * usual
        if elapsed > limit.seconds / 2 and not spent:
            minutes = f"--max-minutes {self.training.max_minutes:g}"
            self.display.line(f"note: loading took {elapsed:.0f} s, so {minutes} leaves little time to train")
        limit.begin(
            share, SAMPLE_LENGTH * (SAMPLED_LINES // 2 if self.training.lines else 1) * len(self.training.prefix)
        )
        return limit

    def _stop(self) -> None:
        self._checkpoint()
        if self.position.evaluations == 0 and self.team.first:  # no best weights yet, but a usable folder
            save_weights(self.folder, self.model)

    def done(self) -> float:
        """The share of the run that is done, from 0 to 1; under --max-minutes it may exceed 1."""
        if self._limit is not None:
            return self._limit.done
        return self.position.step / self.total_steps

    @property
    def total_steps(self) -> int:
        """Optimizer steps in the whole run, which must be one by steps or epochs."""
        if self.training.steps is not None:
            return self.training.steps
        assert self.training.epochs is not None
        return self.training.epochs * self.steps_per_epoch

    def _step(self, done: float) -> None:
        position, training = self.position, self.training
        epoch, index = divmod(position.step, self.steps_per_epoch)
        if index == 0 and training.evaluate_epochs:  # train_loss is the mean over one epoch
            position.loss_sum, position.loss_chars = 0.0, 0
        position.learning_rate = learning_rate(training, position.step, done)
        for group in self.optimizer.param_groups:
            group["lr"] = position.learning_rate

        first = index * training.accumulate
        batches = range(first, min(first + training.accumulate, len(self.windows)))
        windows = [self._window(epoch, batch) for batch in batches]
        symbols = sum(count for *_, count in windows)  # of all processes
        share = symbols / self.team.size  # of each process, on average
        state = position.state if index else None
        nats = 0.0
        if self.team.rank:
            self._seed_dropout()
        self.optimizer.zero_grad()
        for inputs, targets, _ in windows:
            length = min(self.windows.window, inputs.shape[1])
            for part, expected in zip(torch.split(inputs, length, 1), torch.split(targets, length, 1), strict=True):
                loss, state = self._loss(part, expected, state)
                loss = loss / share
                loss.backward()  # type: ignore[no-untyped-call]
                nats += loss.item()
                state = tuple(part.detach() for part in state)
            state = state if self.windows.carried else None
        nats = self.team.mean(nats)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), training.clip or math.inf)
        if not math.isfinite(nats + norm.item()):
            raise self._diverged(
                f"the loss diverged at step {position.step + 1} (loss {nats:g}, gradient norm {norm.item():g})"
            )
        self.optimizer.step()

        position.step += 1
        position.state = state
        position.chars += symbols
        position.loss_sum += nats * symbols
        position.loss_chars += symbols
        position.seconds = time.monotonic() - self._started
        self.display.progress(done, position.step, position.loss_sum / position.loss_chars, self._speed())

    def _seed_dropout(self) -> None:
        """Make this process draw other masks than process 0, whose generator is in the checkpoint, and the same ones
        again when the run is resumed.
        """
        sequence = np.random.SeedSequence((self.training.seed, self.team.rank, self.position.step))
        seed = int(sequence.generate_state(1, np.uint64)[0])
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)

    def _window(self, epoch: int, index: int) -> tuple[Tensor, Tensor, int]:
        """This process's rows of a batch, on the device: inputs and targets (B, T) int64; and the number of symbols
        that all processes predict.
        """
        inputs, targets = self.windows.batch(epoch, index)
        symbols = int((targets != IGNORED).sum()) if self.windows.padded else inputs.numel()
        inputs, targets = inputs[self._rows], targets[self._rows]
        if inputs.device != self.device:  # a text too large for the device is copied window by window
            inputs, targets = inputs.pin_memory(), targets.pin_memory()
        return inputs.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True), symbols

    def _loss(self, inputs: Tensor, targets: Tensor, state: State | None) -> tuple[Tensor, State]:
        """The summed loss of a window in nats, and the state after it, both f32 (the context int64)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.training.precision == "bf16"):
            logits, state = self.network(inputs, state)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
        return loss, tuple(part.float() if part.is_floating_point() else part for part in state)

    def _diverged(self, what: str) -> DivergedError:
        kept = "the last good checkpoint is kept; " if checkpoints(self.folder) else ""
        return DivergedError(
            f"{what}; {kept}start again in another --out with a smaller --learning-rate or a tighter --clip"
        )

    def _require_finite_weights(self) -> None:
        if not all(weight.isfinite().all() for weight in self.model.parameters()):
            raise self._diverged(f"the weights diverged at step {self.position.step}")

    def _speed(self) -> float:
        """Characters per second since the last line of metrics.jsonl."""
        position = self.position
        seconds = max(position.seconds - position.seconds_of_last_line, 1e-9)
        return (position.chars - position.chars_of_last_line) / seconds

    def _evaluation_is_due(self, done: float, due: bool) -> bool:
        """Whether to evaluate; `due` is what the time limit says, if there is one."""
        position, training = self.position, self.training
        if position.step == position.evaluated_step:
            return False
        if done >= 1:
            return True
        if training.evaluate_epochs:
            return position.step % (training.evaluate_epochs * self.steps_per_epoch) == 0
        if training.evaluate_every:
            return position.step % training.evaluate_every == 0
        return due if self._limit else done * AUTOMATIC_EVALUATIONS >= position.evaluations + 1

    def _has_stalled(self) -> bool:
        """Whether the last --patience evaluations have not improved the validation loss."""
        return 0 < self.training.patience <= self.position.stalled

    def _evaluate(self, done: float, board: TensorBoard | None) -> None:
        """Write a line of metrics.jsonl; keep the weights if they are to be kept; sample if samples are due.

        Nothing is printed before the checkpoint is saved, because printing may fail.
        """
        self._check_folder()
        self._require_finite_weights()
        position = self.position
        position.train_loss = position.loss_sum / position.loss_chars
        speed = self._speed()
        measured = self._measure(self.model, self._part)
        # Devices may differ in the last bit, but --patience must end all processes together.
        val_loss = self.team.maximum(measured.loss)[0] if measured else None
        if val_loss is not None and not math.isfinite(val_loss):
            raise self._diverged(f"the validation loss became {val_loss} at step {position.step}")
        improved = val_loss is None or position.best_val_loss is None or val_loss < position.best_val_loss
        position.stalled = 0 if improved else position.stalled + 1
        if improved:
            position.best_val_loss = val_loss
        if improved or self.training.keep == "last":
            position.kept_step, self._kept = position.step, measured
            if self.team.first:
                save_weights(self.folder, self.model)
        position.evaluations += 1
        position.evaluated_step = position.step
        position.seconds = time.monotonic() - self._started
        metrics = {
            "step": position.step,
            "epoch": round(position.step / self.steps_per_epoch, 4),
            "chars": position.chars,
            "train_loss": position.train_loss,
            "val_loss": val_loss,
            "perplexity": perplexity(position.train_loss),
            "bits_per_char": None if val_loss is None else val_loss / math.log(2),
            "chars_per_second": round(speed, 1),
            "seconds": round(position.seconds, 3),
            "learning_rate": position.learning_rate,
        }
        if self.config.labels and measured:
            metrics["val_accuracy"] = measured.accuracy
        if self._limit and self.held_out and measured and measured.characters < self.held_out.part(self._part):
            metrics["val_chars"] = measured.characters  # there was no time for more
        samples: list[str] = []
        if self.team.first:
            position.metrics_bytes += _append(self.folder / METRICS, json.dumps(metrics) + "\n")
            every = self.training.sample_every
            if every and position.evaluations % every == 0 and done < 1:
                samples = self._sample(self.model)
        position.loss_sum, position.loss_chars = 0.0, 0
        position.chars_of_last_line = position.chars
        position.seconds_of_last_line = time.monotonic() - self._started
        self._checkpoint()
        self.display.evaluation(metrics)
        if samples and not self._writes_noise(val_loss):
            self.display.samples(samples)
        if board is not None:
            board.evaluation(metrics)

    @cached_property
    def _entropy(self) -> float:
        """The loss of a model that knows nothing but how frequent each symbol is, in nats, by a part of the text."""
        batches = range(min(8, len(self.windows)))
        targets = torch.cat([self.windows.batch(0, index)[1].flatten().cpu() for index in batches])
        counts = torch.bincount(targets[targets != IGNORED])
        return float(torch.special.entr(counts / counts.sum()).sum())

    def _writes_noise(self, val_loss: float | None) -> bool:
        """Whether a model of this validation loss, or of the last training loss, writes text that looks like noise."""
        loss = self.position.train_loss if val_loss is None else val_loss
        return loss is not None and loss >= WORTH_SEEING * self._entropy

    def _sample(self, model: CharacterModel) -> list[str]:
        """Append a sample for every prefix to samples.txt and return them; a tagger has none."""
        if self.config.labels:
            return []
        training, samples = model.training, []
        model.eval()
        temperature, seed = self.training.temperature, self.training.seed
        length = SAMPLE_LENGTH // 2 if self.training.lines else SAMPLE_LENGTH
        limit = self._limit
        stop = None if limit is None else limit.sampling_is_over
        with limit.sampling() if limit else nullcontext():
            for prefix in self.training.prefix:
                texts = [
                    prefix
                    + generate(model, self.config.vocabulary, prefix, length, temperature, seed + index, stop=stop)
                    for index in range(SAMPLED_LINES if self.training.lines else 1)
                ]
                header = f"--- step {self.position.step}, prefix {prefix!r}, temperature {temperature:g}"
                sample = "\n".join([header, *texts]) + "\n\n"
                self.position.samples_bytes += _append(self.folder / SAMPLES, sample)
                samples.append(sample)
        model.train(training)
        return samples

    def _checkpoint(self) -> None:
        self._check_folder()
        self._require_finite_weights()
        self.position.seconds = time.monotonic() - self._started
        position = self.position
        if position.state is not None:
            position = replace(position, state=tuple(self.team.gather(part, dim=1) for part in position.state))
        if self.team.first:
            save_checkpoint(self.folder, self.config, position, self.model, self.optimizer)
        self._last_checkpoint = time.monotonic()

    def _measure(
        self, model: CharacterModel, limit: int | None, stop: Callable[[], bool] | None = None
    ) -> Measurement | None:
        """Measure the loss on the held-out data: on `limit` characters of each track, or fewer if time runs out.

        `stop` says when it does; by default that is when what follows would no longer fit the time limit.
        """
        if self.held_out is None:
            return None
        if stop is None and self._limit is not None:
            stop = self._limit.end_of_measuring()
        started = time.monotonic()
        measured = self.held_out.measure(model, limit, stop)
        if self._limit is not None:
            self._limit.measured(time.monotonic() - started, measured.characters / self.held_out.characters)
        return measured

    def _measure_kept(self, kept: CharacterModel) -> Measurement | None:
        """Measure the kept weights on all held-out data; if that does not fit the time limit, on the usual part."""
        if self.held_out is None:
            return None
        limit = self._limit
        if limit is None or limit.whole_pass_fits:
            measured = self._measure(kept, None, None if limit is None else limit.end_of_whole_pass())
            if measured and (limit is None or measured.characters == self.held_out.characters):
                return measured
        return self._kept or self._measure(kept, self._part)

    def _finish(self) -> None:
        """Measure the kept weights; write the last samples, the curves and the summary."""
        if not self.team.first:
            return
        limit = self._limit
        kept = load_run(self.folder).build().to(self.device)
        measured = self._measure_kept(kept)
        samples = self._sample(kept)
        if limit is None or limit.curves_fit:
            draw_curves(self.folder / METRICS, self.folder / CURVES)
        else:
            self.display.line(f"no time was left to draw {self.folder / CURVES}")
        position = self.position
        seconds = time.monotonic() - self._started
        summary = self.summary = {
            "val_loss": measured.loss if measured else None,
            "step": position.kept_step,
            "steps": position.step,
            "train_loss": position.train_loss,
            "bits_per_char": measured.loss / math.log(2) if measured else None,
            "chars": position.chars,
            "chars_per_second": round(position.chars / seconds, 1),
            "seconds": round(seconds, 3),
            "parameters": sum(weight.numel() for weight in self.model.parameters()),
            "val_chars": measured.characters if measured else 0,
            "val_whole": measured.characters == self.held_out.characters if self.held_out and measured else None,
        }
        if self.config.labels and measured:
            summary["val_accuracy"] = measured.accuracy
        self._check_folder()
        replace_file(self.folder / SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())
        self.display.samples(samples)
        if samples and self._writes_noise(summary["val_loss"]):
            self.display.line("note: this model writes little better than noise; train it for longer")


def _build(config: RunConfig, device: torch.device) -> CharacterModel:
    size, training = config.model, config.training
    try:
        model = CharacterModel(
            size, len(config.vocabulary), len(config.labels), training.scratch, training.ngram_dropout
        )
        initialize(model, training.initialization)
        return model.to(device)
    except (RuntimeError, TypeError):  # too much memory; a size beyond 64 bits
        tables = f" with ngrams {size.ngrams} and ngram_rows {size.ngram_rows}" if size.ngrams > 1 else ""
        raise ConfigError(
            f"a model with layers {size.layers}, hidden {size.hidden} and embedding {size.embedding}{tables} does not"
            f" fit in the memory of {device}; make it smaller"
        ) from None


def _append(path: Path, text: str) -> int:
    """Append `text` to `path` and return its length in bytes."""
    data = text.encode()
    append_file(path, data)
    return len(data)
