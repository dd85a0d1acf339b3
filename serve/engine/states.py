"""The recurrent states of all streams: a table by slot on the host, and the batch of the last round on the device.

As long as rounds have the same rows, their states stay on the device: the outputs of one call are the inputs of the
next, without a copy. When the rows change, the table is brought up to date and the next batch is gathered from it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rill.serve.engine.text_codec import Ids
from rill.serve.engine.types import State

Batch = dict[str, ort.OrtValue]  # states by name on the device, [layers, rows, hidden] each


class States:
    """State parts by name ("state_h", ...), float32 [layers, slots, hidden]. Used by the engine's thread only.

    Batches live on `device` ("cpu" or "cuda"), number `device_id`.
    """

    def __init__(self, names: Sequence[str], shape: tuple[int, int, int], device: str, device_id: int) -> None:
        # np.zeros takes memory only when a slot is first used.
        self._table = {name: np.zeros(shape, np.float32) for name in names}
        self._device, self._device_id = device, device_id
        self._slots: Ids = np.zeros(0, np.int64)  # whose states on the device are newer than the table
        self._batch: Batch = {}

    def batch(self, slots: Ids) -> Batch:
        """The states of `slots` on the device, [layers, len(slots), hidden] each."""
        if not np.array_equal(slots, self._slots):
            self._write_back()
            rows = {name: table.take(slots, axis=1) for name, table in self._table.items()}
            return to_device(rows, self._device, self._device_id)
        return self._batch

    def keep(self, slots: Ids, batch: Batch) -> None:
        """Take over the states after a round of `batch(slots)`."""
        self._slots, self._batch = slots, batch

    def begin(self, slot: int, state: State | None) -> None:
        """Set a slot to the first state of a stream; None: zeros."""
        self._write_back()
        for name, table in self._table.items():
            table[:, slot] = 0 if state is None else state[name]

    def row(self, slot: int) -> State:
        """The state of a slot, [layers, hidden] each."""
        self._write_back()
        return {name: table[:, slot].copy() for name, table in self._table.items()}

    def _write_back(self) -> None:
        """Bring the table up to date."""
        for name, value in self._batch.items():
            self._table[name][:, self._slots] = value.numpy()
        self._slots, self._batch = np.zeros(0, np.int64), {}


def to_device(states: Mapping[str, NDArray[np.float32]], device: str, device_id: int) -> Batch:
    """Copy the states of a batch to the device."""
    return {name: ort.OrtValue.ortvalue_from_numpy(values, device, device_id) for name, values in states.items()}
