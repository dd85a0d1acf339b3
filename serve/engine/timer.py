"""A hook for measuring where the time goes."""

from collections.abc import Callable
from typing import TypeVar

from rill.serve.engine.rows import Round

Function = TypeVar("Function", bound=Callable[..., None])


class StageTimer:
    """Measures the stages of one engine; this one does nothing. `rill.serve.operate.profile` has one that measures.

    The engine's thread calls it half a dozen times a round, for about 40 ns each.
    """

    def lap(self, stage: str) -> None:
        """End a stage of the engine's thread, which began where the last one ended."""

    def count(self, r: Round) -> None:
        """Count a round that has run."""

    def around(self, stage: str, function: Function) -> Function:
        """Return `function`, or one that does the same and is measured as `stage`."""
        return function
