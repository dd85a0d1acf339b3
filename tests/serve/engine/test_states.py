"""The recurrent states on the host and on the device."""

import numpy as np
import onnxruntime as ort

from rill.serve.engine.states import States


def test_states_stay_on_the_device_while_the_rows_stay():
    states = States(tuple((name, (2, "batch", 3)) for name in ("state_h", "state_c")), 5, "cpu", 0)
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


def test_the_context_is_a_state_of_whole_numbers_by_row():
    states = States((("state_h", (2, "batch", 3)), ("context", ("batch", 2))), 5, "cpu", 0)
    states.begin(3, {"state_h": np.ones((2, 3), np.float32), "context": np.array([8, 9])})
    batch = states.batch(np.array([1, 3, 4]))
    assert batch["context"].numpy().tolist() == [[0, 0], [8, 9], [0, 0]]
    assert batch["context"].data_type() == "tensor(int64)"
    after = {"state_h": batch["state_h"], "context": ort.OrtValue.ortvalue_from_numpy(np.arange(6).reshape(3, 2))}
    states.keep(np.array([1, 3, 4]), after)
    assert states.row(4)["context"].tolist() == [4, 5]
    assert states.row(3)["state_h"].tolist() == np.ones((2, 3)).tolist()
    states.begin(3, None)
    assert states.batch(np.array([3, 1]))["context"].numpy().tolist() == [[0, 0], [0, 1]]
