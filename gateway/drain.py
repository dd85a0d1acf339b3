"""The end of a gateway, as its streams see it."""

import asyncio


class Drain:
    """Becomes true once, when the gateway is to end; streams that run then end with a resume token."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()

    @property
    def has_begun(self) -> bool:
        """Tell whether streams are to end."""
        return self._begun.is_set()

    def begin(self) -> None:
        """End the streams."""
        self._begun.set()

    async def wait(self) -> None:
        """Return when it begins."""
        await self._begun.wait()
