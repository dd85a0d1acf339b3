"""The errors that a user of `rill export` can act on.

ValueError
├── TrainError          (rill.train.errors)
│   ├── RunError           a run folder is missing or damaged (rill.train.record.run)
│   ├── UnsupportedError   no bundle can be made of this model, in this precision or under this name
│   └── ForeignError       a foreign checkpoint or its vocabulary cannot be used
├── BundleError         the bundle's folder holds something else (rill.bundle)
├── ParityError         an exported graph differs from the PyTorch model
└── LossError           int8 loses too much quality
"""

from rill.train.errors import TrainError


class UnsupportedError(TrainError):
    """No bundle can be made of this model, in this precision or under this name."""


class ForeignError(TrainError):
    """A foreign checkpoint or its vocabulary cannot be used; the message names the tensor and says what to do."""


class ParityError(ValueError):
    """An exported graph differs from the PyTorch model."""


class LossError(ValueError):
    """int8 costs a model more than `MAX_LOSS` bits per character (`rill.export.parity.int8_loss`)."""
