"""The in-process floors: how fast this machine generates characters without a server.

- decode: the server's own decoder, many steps a call;
- step: the usual loop around ONNX Runtime, one step of the portable graph a character, sampling in NumPy;
- eager: the usual loop in PyTorch, one step a character, for a model of the same shape. Its weights are random: the
  time of a step does not depend on their values.

All run on one thread. With top-p, the last two sort.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from rill.bench.peers.step import portable_session, zero_states
from rill.bundle import Bundle
from rill.sampling import Sampling
from rill.serve.engine.decoder import Decoder
from rill.serve.engine.devices import choose_device
from rill.serve.engine.rows import VARIANTS, kind_of
from rill.serve.engine.states import States
from rill.train.config import ModelConfig
from rill.train.nets.model import CharacterModel
from rill.vocabulary import Vocabulary

STEPS = 64  # of a call of the decode graph, and of the loops between two readings of the clock
CHARACTERS = 4096  # of a call, about: a large batch has fewer steps
NAMES = {"decode": "decode graph", "step": "ORT step + NumPy", "eager": "PyTorch eager"}


@dataclass
class Floor:
    """One way to generate `batch` characters at a time; `samples` in characters a second, `cpu` in µs a character."""

    name: str
    batch: int
    steps: int
    call: Callable[[], int]  # takes so many steps; returns how many characters that gave: a model may end texts
    samples: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def sample(self, seconds: float) -> None:
        """Measure for about `seconds`, after one call that is not counted."""
        self.call()
        started, cpu = time.perf_counter(), time.thread_time()
        now, characters = started, 0
        while now < started + seconds:
            characters += self.call()
            now = time.perf_counter()
        self.samples.append(characters / (now - started))
        self.cpu.append(1e6 * (time.thread_time() - cpu) / max(characters, 1))

    @property
    def speed(self) -> float:
        """Characters a second: the median of the samples."""
        return median(self.samples)

    @property
    def cpu_us(self) -> float:
        """CPU microseconds a character, of this thread: the median of the samples."""
        return median(self.cpu)


class Floors:
    """The floors of a bundle. Raises StartError or ConfigError if it cannot run here."""

    def __init__(self, bundle: Bundle, device: str = "cpu", top_p: float = 1.0) -> None:
        torch.set_num_threads(1)
        self._bundle, self._top_p = bundle, top_p
        self._decoder = Decoder(bundle, *choose_device(device))
        self._session = portable_session(bundle)
        self._model = CharacterModel(ModelConfig.from_json(bundle.model), len(bundle.vocabulary)).eval()

    def at(self, batch: int, names: Sequence[str] = tuple(NAMES)) -> list[Floor]:
        """Return the floors of these names at a batch size, not yet sampled."""
        steps = min(max(CHARACTERS // batch, 1), STEPS)
        calls = {
            "decode": lambda: _decode_steps(self._decoder, self._bundle, batch, steps, self._top_p),
            "step": lambda: _session_steps(self._session, self._bundle, batch, steps, self._top_p),
            "eager": lambda: _eager_steps(self._model, self._bundle.vocabulary, batch, steps, self._top_p),
        }
        return [Floor(name, batch, steps, calls[name]()) for name in names]


async def sample(floors: Sequence[Floor], seconds: float) -> None:
    """Sample each once, and let Ctrl-C through between them."""
    for floor in floors:
        floor.sample(seconds)
        await asyncio.sleep(0)


def _decode_steps(decoder: Decoder, bundle: Bundle, batch: int, steps: int, top_p: float) -> Callable[[], int]:
    """Return a call that generates `steps` characters for `batch` rows at once, continuing from the last call."""
    states = States(bundle.states, batch, decoder.device, decoder.device_id).batch(np.arange(batch))
    feeds: dict[str, NDArray[Any]] = {
        "token": np.full(batch, bundle.vocabulary.start_id),
        "uniforms": np.random.default_rng(0).random((steps, batch), dtype=np.float32),
        "forced": np.full((steps, batch), -1),
        "steps": np.full(batch, steps),
        "temperature": np.ones(batch, np.float32),
    }
    variant = VARIANTS[kind_of(Sampling(top_p=top_p))]
    if top_p < 1:
        feeds["top_p"], feeds["min_p"] = np.full(batch, top_p, np.float32), np.zeros(batch, np.float32)
        feeds["logit_bias"] = np.zeros((batch, len(bundle.vocabulary)), np.float32)

    ends = np.array(bundle.vocabulary.end_ids, np.int64)

    def call() -> int:
        nonlocal states
        outputs, states = decoder.run(variant, feeds, states)
        tokens = outputs["tokens"]
        feeds["token"] = tokens[-1]
        if not len(ends):
            return steps * batch
        has_ended = np.logical_or.accumulate(np.isin(tokens, ends), axis=0)
        feeds["token"] = np.where(has_ended[-1], bundle.vocabulary.start_id, tokens[-1])
        return int((~has_ended).sum())

    return call


def _session_steps(
    session: ort.InferenceSession, bundle: Bundle, batch: int, steps: int, top_p: float
) -> Callable[[], int]:
    """Return a call that generates them one by one: a run of model.onnx, softmax, inverse of the cumulative sums."""
    names = [name for name, _ in bundle.states]
    states = zero_states(bundle, batch)
    start, ends = bundle.vocabulary.start_id, np.array(bundle.vocabulary.end_ids, np.int64)
    tokens = np.full((batch, 1), bundle.vocabulary.start_id)
    uniforms = np.random.default_rng(0).random((steps, batch, 1), dtype=np.float32)
    outputs = ["logits", *(f"next_{name}" for name in names)]

    def call() -> int:
        nonlocal tokens, states
        ended = 0
        for u in uniforms:
            logits, *states = session.run(outputs, {"tokens": tokens, **dict(zip(names, states, strict=True))})
            mass = np.exp(logits[:, 0] - logits[:, 0].max(axis=1, keepdims=True))
            if top_p < 1:
                largest = -np.sort(-mass)
                above = largest.cumsum(axis=1) - largest
                kept = (above < top_p * mass.sum(axis=1, keepdims=True)).sum(axis=1, keepdims=True)
                mass *= mass >= np.take_along_axis(largest, kept - 1, axis=1)
            cumulative = mass.cumsum(axis=1)
            tokens = (cumulative > u * cumulative[:, -1:]).argmax(axis=1, keepdims=True)
            if len(ends):
                has_ended = np.isin(tokens, ends)
                tokens, ended = np.where(has_ended, start, tokens), ended + int(has_ended.sum())
        return steps * batch - ended

    return call


def _eager_steps(
    model: CharacterModel, vocabulary: Vocabulary, batch: int, steps: int, top_p: float
) -> Callable[[], int]:
    """Return a call that generates them one by one: a step, softmax, inverse of the cumulative distribution."""
    start, ends = vocabulary.start_id, torch.tensor(vocabulary.end_ids, dtype=torch.int64)
    tokens = torch.full((batch, 1), start)
    state = model.initial_state(batch)
    uniforms = torch.rand(steps, batch, 1)

    @torch.inference_mode()
    def loop() -> int:
        nonlocal tokens, state
        ended = 0
        for u in uniforms:
            logits, state = model(tokens, state)  # (B, 1, V)
            mass = torch.softmax(logits[:, 0], dim=1)  # (B, V)
            if top_p < 1:
                largest = mass.sort(dim=1, descending=True).values
                kept = (largest.cumsum(dim=1) - largest < top_p).sum(dim=1, keepdim=True)
                mass *= mass >= largest.gather(1, kept - 1)
            cumulative = mass.cumsum(dim=1)
            # Rounding may put u times the sum beyond the last character.
            tokens = torch.searchsorted(cumulative, u * cumulative[:, -1:]).clamp(max=model.vocabulary_size - 1)
            if len(ends):
                has_ended = torch.isin(tokens, ends)
                tokens, ended = tokens.masked_fill(has_ended, start), ended + int(has_ended.sum())
        return steps * batch - ended

    return loop
