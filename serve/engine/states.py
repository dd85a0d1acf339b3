"""The recurrent states of all streams: a table by slot on the host, and the batch of the last round on the device.

As long as rounds have the same rows, their states stay on the device: the outputs of one call are the inputs of the
next, without a copy. When the rows change, the table is brought up to date and the next batch is gathered from it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rill.bundle import CONTEXT, Bundle
from rill.bundle import States as BundleStates
from rill.serve.engine.text_codec import Ids
from rill.serve.engine.types import State

# States by name on the device, [layers, rows, hidden] each; the context of models with n-gram tables, the last symbols
# that a row has read, is int64 [rows, symbols].
Batch = dict[str, ort.OrtValue]


class States:
    """State parts by name ("state_h", ...), float32 [layers, slots, hidden], and the context int64 [slots, symbols].

    Used by the engine's thread only. Batches live on `device` ("cpu" or "cuda"), number `device_id`.
    """

    def __init__(self, shapes: BundleStates, slots: int, device: str, device_id: int) -> None:
        """`shapes` are a bundle's states, in which "batch" stands for `slots`."""
        # np.zeros takes memory only when a slot is first used.
        self._table = {name: _zeros(name, shape, slots) for name, shape in shapes}
        self._device, self._device_id = device, device_id
        self._slots: Ids = np.zeros(0, np.int64)  # whose states on the device are newer than the table
        self._batch: Batch = {}

    def batch(self, slots: Ids) -> Batch:
        """The states of `slots` on the device."""
        if not np.array_equal(slots, self._slots):
            self._write_back()
            rows = {name: table.take(slots, axis=batch_axis(name)) for name, table in self._table.items()}
            return to_device(rows, self._device, self._device_id)
        return self._batch

    def keep(self, slots: Ids, batch: Batch) -> None:
        """Take over the states after a round of `batch(slots)`."""
        self._slots, self._batch = slots, batch

    def begin(self, slot: int, state: State | None) -> None:
        """Set a slot to the first state of a stream; None: zeros."""
        self._write_back()
        for name, table in self._table.items():
            table[row_index(name, slot)] = 0 if state is None else state[name]

    def row(self, slot: int) -> State:
        """The state of a slot."""
        self._write_back()
        return row_of(self._table, slot)

    def _write_back(self) -> None:
        """Bring the table up to date."""
        for name, value in self._batch.items():
            self._table[name][row_index(name, self._slots)] = value.numpy()
        self._slots, self._batch = np.zeros(0, np.int64), {}


def batch_axis(name: str) -> int:
    """The axis of the rows of a state."""
    return 0 if name == CONTEXT else 1


def row_index(name: str, row: int | Ids) -> Any:
    """The index of a row, or of rows, of a state."""
    return row if name == CONTEXT else (slice(None), row)


def row_of(states: Mapping[str, NDArray[Any]], row: int) -> State:
    """The state of one row, [layers, hidden] each and the context [symbols], from those of a batch."""
    return {name: values[row_index(name, row)].copy() for name, values in states.items()}


def initial_state(bundle: Bundle) -> State:
    """The state of a stream that has read nothing."""
    return row_of({name: _zeros(name, shape, 1) for name, shape in bundle.states}, 0)


def _zeros(name: str, shape: Sequence[int | str], rows: int) -> NDArray[Any]:
    sizes = [rows if size == "batch" else int(size) for size in shape]
    return np.zeros(sizes, np.int64 if name == CONTEXT else np.float32)


def to_device(states: Mapping[str, NDArray[Any]], device: str, device_id: int) -> Batch:
    """Copy the states of a batch to the device."""
    return {name: ort.OrtValue.ortvalue_from_numpy(values, device, device_id) for name, values in states.items()}
