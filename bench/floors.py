"""The in-process floors: how fast this machine makes characters when nothing stands between them and the caller.

- decode: the server's own decoder, many steps a call;
- eager: the loop that one writes in PyTorch, one step a character, for a model of the same shape. Its weights are
  random: how long a step takes does not depend on their values.

Both run on one thread.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch

from export.bundle import Bundle
from serve.runtime import Decoder, choose_device
from serve.states import States
from train.config import ModelConfig
from train.model import CharacterModel

STEPS = 64  # of a call of the decode graph, and of the eager loop between two looks at the clock


@dataclass
class Floor:
    """One way of making `batch` characters at a time; `samples` are in characters a second."""

    name: str
    batch: int
    step: Callable[[], None]  # makes STEPS x batch characters
    samples: list[float] = field(default_factory=list)

    def sample(self, seconds: float) -> None:
        """Measure once more, for about `seconds`, after one call that is not counted."""
        self.step()
        started = now = time.perf_counter()
        calls = 0
        while now < started + seconds:
            self.step()
            calls += 1
            now = time.perf_counter()
        self.samples.append(calls * STEPS * self.batch / (now - started))

    @property
    def speed(self) -> float:
        """Characters a second: the median of the samples."""
        return median(self.samples)


def floors_of(bundle: Bundle, batches: Sequence[int], device: str = "cpu") -> list[Floor]:
    """Both floors at each batch size. Raises StartError or ConfigError for a bundle that cannot run here."""
    torch.set_num_threads(1)
    decoder = Decoder(bundle, *choose_device(device))
    model = CharacterModel(ModelConfig.from_json(bundle.model), len(bundle.vocabulary)).eval()
    return [
        floor
        for batch in batches
        for floor in (
            Floor("decode", batch, _decode_steps(decoder, bundle, batch)),
            Floor("eager", batch, _eager_steps(model, bundle.vocabulary.start_id, batch)),
        )
    ]


def _decode_steps(decoder: Decoder, bundle: Bundle, batch: int) -> Callable[[], None]:
    """STEPS characters for `batch` rows in one call, going on from the call before."""
    states = States(
        [name for name, _ in bundle.states], (bundle.layers, batch, bundle.hidden), decoder.device, decoder.device_id
    ).batch(np.arange(batch))
    feeds = {
        "token": np.full(batch, bundle.vocabulary.start_id),
        "uniforms": np.random.default_rng(0).random((STEPS, batch), dtype=np.float32),
        "forced": np.full((STEPS, batch), -1),
        "steps": np.full(batch, STEPS),
        "temperature": np.ones(batch, np.float32),
    }

    def call() -> None:
        nonlocal states
        made, states = decoder.run("decode", feeds, states)
        feeds["token"] = made["tokens"][-1]

    return call


def _eager_steps(model: CharacterModel, start: int, batch: int) -> Callable[[], None]:
    """STEPS characters for `batch` rows one by one: step, softmax, inverse of the cumulative distribution."""
    tokens = torch.full((batch, 1), start)
    state = model.initial_state(batch)
    uniforms = torch.rand(STEPS, batch, 1)

    @torch.inference_mode()
    def loop() -> None:
        nonlocal tokens, state
        for u in uniforms:
            logits, state = model(tokens, state)  # (B, 1, V)
            cumulative = torch.softmax(logits[:, 0], dim=1).cumsum(dim=1)  # (B, V)
            # Rounding may put u times the sum beyond the last character.
            tokens = torch.searchsorted(cumulative, u * cumulative[:, -1:]).clamp(max=model.vocabulary_size - 1)

    return loop
