"""The recurrent states on the host and on the device."""

import numpy as np
import onnxruntime as ort

from rill.serve.engine.states import States


def test_states_stay_on_the_device_while_the_rows_stay():
    states = States(["state_h", "state_c"], (2, 5, 3), "cpu", 0)
    first = states.batch(np.array([1, 3]))
    assert first["state_h"].shape() == [2, 2, 3]

    def filled(value):
        return {
            name: ort.OrtValue.ortvalue_from_numpy(np.full((2, 2, 3), value + at, np.float32))
            for at, name in enumerate(first)
        }

    kept = filled(5)
    states.keep(np.array([1, 3]), kept)
    assert states.batch(np.array([1, 3])) is kept
    other = states.batch(np.array([0, 3]))  # another batch: the table is brought up to date
    assert other["state_h"].numpy()[0, :, 0].tolist() == [0, 5]
    assert other["state_c"].numpy()[0, :, 0].tolist() == [0, 6]
    states.keep(np.array([0, 3]), filled(7))
    states.begin(3, None)
    after = {name: value.numpy()[0, :, 0].tolist() for name, value in states.batch(np.array([0, 1, 3])).items()}
    assert after == {"state_h": [7, 5, 0], "state_c": [8, 6, 0]}
