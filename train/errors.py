"""The errors that a user of `train` can mend; the command prints each as one line.

TrainError(ValueError)
├── ConfigError    an option or config.json asks for something impossible
├── CorpusError    the text cannot be read or is too small
├── RunError       a run folder is missing, damaged or in the way (defined in rill.train.record.run)
└── DivergedError  the loss, its gradient or a weight stopped being a finite number
"""


class TrainError(ValueError):
    """What went wrong and what to do about it, in one sentence or two."""


class ConfigError(TrainError):
    """An option or a config.json asks for something impossible."""


class CorpusError(TrainError):
    """The text cannot be read, or there is too little of it."""


class DivergedError(TrainError):
    """The loss, its gradient or a weight stopped being a finite number."""
