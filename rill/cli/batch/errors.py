"""Why `rill batch` leaves a file as it is."""

WAYS_OUT = "remove it, or choose another --out"


class OutputError(ValueError):
    """An existing file is not of this run, and is left as it is; the message names it and says what to do."""
