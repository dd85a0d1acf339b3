"""The recurrent state at an earlier position of a text: the model reads the characters again, from a state before it.

The serving graph gives the same bits however its steps are cut into calls, so this is exactly the state that was there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rill.bundle import DECODE
from rill.serve.constraints.automaton import Automaton
from rill.serve.engine.decoder import Decoder
from rill.serve.engine.states import batch_axis, row_of, to_device
from rill.serve.engine.text_codec import Ids
from rill.serve.engine.types import Snapshot, State


@dataclass(frozen=True)
class ReplayPoint:
    """The position after `ids` [steps], which were read or generated from `base` on; the rest as in `Snapshot`.

    With an `automaton`, all of them were generated.
    """

    base: Snapshot
    ids: Ids
    position: int
    partial_stop: str
    automaton: Automaton | None = None

    @property
    def automaton_state(self) -> int:
        """That of the automaton there."""
        state = self.base.automaton_state
        return self.automaton.after(state, self.ids.tolist()) if self.automaton else state


def replay(decoder: Decoder, points: Sequence[ReplayPoint]) -> list[Snapshot]:
    """The snapshots at `points`, by one call of the serving graph."""
    if not points:
        return []
    padding = decoder.padding(len(points))
    steps = np.array([len(point.ids) for point in points] + [0] * padding)
    bases = [point.base for point in points]
    states = [base.state for base in bases]
    if steps.any():
        states = _states_after([*bases, *bases[:1] * padding], [point.ids for point in points], steps, decoder)
    return [
        Snapshot(
            point.position,
            int(np.append(point.base.token, point.ids)[-1]),
            state,
            point.partial_stop,
            automaton_state=point.automaton_state,
        )
        for point, state in zip(points, states, strict=False)
    ]


def _states_after(bases: Sequence[Snapshot], ids: Sequence[Ids], steps: Ids, decoder: Decoder) -> list[State]:
    """The states after so many `steps` [bases]; bases without `ids` are padding."""
    forced = np.zeros((steps.max(), len(bases)), np.int64)
    for column, row in enumerate(ids):
        forced[: len(row), column] = row
    feeds = {
        "token": np.array([base.token for base in bases]),
        "forced": forced,
        "steps": steps,
        "uniforms": np.zeros(forced.shape, np.float32),
        "temperature": np.ones(len(bases), np.float32),
    }
    before = {name: np.stack([base.state[name] for base in bases], axis=batch_axis(name)) for name in bases[0].state}
    _, after = decoder.run(DECODE.key, feeds, to_device(before, decoder.device, decoder.device_id))
    host = {name: value.numpy() for name, value in after.items()}
    return [row_of(host, column) for column in range(len(bases))]
