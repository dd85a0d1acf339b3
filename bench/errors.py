"""What a user of `bench` can mend."""


class BenchError(Exception):
    """The benchmark cannot be run as asked; the message is one line that says why."""
