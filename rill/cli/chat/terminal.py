"""The terminal of `rill chat`: a line editor, and the keys that interrupt the model."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prompt_toolkit import PromptSession
from prompt_toolkit.input import create_input
from prompt_toolkit.input.typeahead import store_typeahead
from prompt_toolkit.key_binding import KeyPress
from prompt_toolkit.keys import Keys
from prompt_toolkit.styles import Style

ESCAPE_SECONDS = 0.05  # until an Esc is known to be the key, and not the beginning of another key's sequence


class Terminal:
    """Lines, one after the other; `status` returns what is shown below the one that is typed."""

    def __init__(self, status: Callable[[], str]) -> None:
        self._input = create_input()
        self._editor: PromptSession[str] = PromptSession(
            "> ",
            input=self._input,
            bottom_toolbar=status,
            style=Style.from_dict({"bottom-toolbar": "noreverse fg:ansibrightblack"}),
            enable_suspend=True,
        )

    async def line(self) -> str | None:
        """Return the next line; None after Ctrl-D. Ctrl-C clears the line."""
        while True:
            try:
                return await self._editor.prompt_async()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return None

    @contextmanager
    def watched(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """Inside the context, Esc and Ctrl-C call `interrupt`; other keys are kept for the next line."""
        loop = asyncio.get_running_loop()
        flush = loop.call_soon(lambda: None)

        def take(keys: list[KeyPress]) -> None:
            for key in keys:
                if key.key in (Keys.Escape, Keys.ControlC):
                    interrupt()
                elif key.key is not Keys.CPRResponse:  # the terminal's answer to the editor, which came too late
                    store_typeahead(self._input, [key])

        def read() -> None:
            nonlocal flush
            take(self._input.read_keys())
            flush.cancel()
            flush = loop.call_later(ESCAPE_SECONDS, lambda: take(self._input.flush_keys()))

        loop.add_signal_handler(signal.SIGINT, interrupt)
        try:
            with self._input.raw_mode(), self._input.attach(read):
                yield
                take(self._input.flush_keys())
        finally:
            flush.cancel()
            loop.remove_signal_handler(signal.SIGINT)
