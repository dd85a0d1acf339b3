"""The error of `rill page`."""


class PageError(ValueError):
    """A page cannot be written; the message says what is wrong, where, and what to do."""
