"""The page of a gateway in a real browser."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from servers import wait_until

from rill.client.sync import Client

VIEW = "document.querySelector('rill-text')"
TEXT = f"{VIEW}.text"


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; skip where there is none."""
    api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if not path:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Playground:
    """A page that is open, with what it complained about and whom it asked."""

    def __init__(self, browser: Any, url: str, bearer: str = "", **options: Any) -> None:
        self.url = url
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(30_000)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self._tolerated = ["net::ERR_CONNECTION_", "net::ERR_EMPTY_RESPONSE"]  # a gateway may end before its page
        self.asked: list[str] = []
        self.sent: list[str] = []  # what went through WebSockets
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("websocket", self._listen)
        self.page.goto(url)
        if bearer:
            self.page.fill("#bearer", bearer)
            self.page.click("#access button")
        wait_until(lambda: self.page.evaluate("document.getElementById('model').options.length") > 0)

    def _listen(self, socket: Any) -> None:
        self.asked.append(socket.url)
        socket.on("framesent", lambda frame: self.sent.append(frame))  # noqa: PLW0108  # playwright marks functions

    @property
    def text(self) -> str:
        """What is shown, the prompt included; of two texts, the first."""
        text: str = self.page.evaluate(TEXT)
        return text

    @property
    def texts(self) -> list[str]:
        texts: list[str] = self.page.evaluate("[...document.querySelectorAll('rill-text')].map((view) => view.text)")
        return texts

    @property
    def status(self) -> str:
        status: str = self.page.inner_text("#status")
        return status

    def wait(self, condition: Callable[[], bool], seconds: float = 30) -> None:
        """Poll; fail with what the page says."""
        try:
            wait_until(condition, seconds)
        except AssertionError:
            problem = self.page.inner_text("#problem")
            raise AssertionError(f"{self.status!r} {problem!r} {self.text[-50:]!r} {self.complaints}") from None

    def set(self, **values: object) -> None:
        """Set fields, sliders by their value."""
        for name, value in values.items():
            self.page.fill(f"#{name.replace('_', '-')}", str(value))

    def start(self, prompt: str = "", pace: int = 13, **values: object) -> None:
        """Start a text; its pace is the last one, without a limit, unless told otherwise."""
        self.set(prompt=prompt, pace=pace, **values)
        self.page.click("#start")

    def complete(self) -> str:
        """Wait for the end of the text, and return it."""
        self.wait(self._is_complete)
        return self.text

    def _is_complete(self) -> bool:
        """Tell whether the text is complete, and shown to its end: that takes a frame."""
        found = re.fullmatch(r"Complete: .*?([\d,]+)( characters)?", self.status)
        return bool(found) and self.page.evaluate(f"{VIEW}.length") == int(found[1].replace(",", ""))

    def grown(self, length: int) -> None:
        """Wait until the text has so many characters."""
        self.wait(lambda: self.page.evaluate("document.querySelector('rill-text').length") >= length)

    def pause(self) -> str:
        """Pause, and return the text."""
        self.page.click("#pause")
        self.wait(lambda: self.status.startswith(("Paused", "Complete")))
        return self.text

    def fork(self, position: int, key: str) -> None:
        """Fork at a character, by a key in the menu that opens there."""
        self.page.locator("rill-text span").nth(position).click()
        self.page.locator(".fork-menu").wait_for()
        self.page.keyboard.press(key)

    def tolerate(self, *words: str) -> None:
        """Allow for what Chromium itself says of requests that fail."""
        self._tolerated += words

    def close(self) -> None:
        """Close it; it must not have complained, nor asked another host."""
        self.context.close()
        place = urlsplit(self.url).netloc
        complaints = [one for one in self.complaints if not any(word in one for word in self._tolerated)]
        assert not complaints, complaints
        assert {urlsplit(url).netloc for url in self.asked} == {place}, self.asked


def text_of(client: Client, prompt: str = "", **parameters: Any) -> str:
    """The text that Python's client gets."""
    return "".join(client.generate(prompt, **parameters))


def token_after(client: Client, count: int, prompt: str = "", **parameters: Any) -> bytes:
    """The resume token after so many characters of a text."""
    stream = client.generate(prompt, max_chars=count, **parameters)
    for _ in stream:
        pass
    token: bytes = stream.resume_token
    return token
