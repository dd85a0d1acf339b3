"""Gateways that tests share."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gateways import Gateway, run_gateway
from playgrounds import Playground, chromium
from servers import Server


@pytest.fixture(scope="session")
def gateway(server: Server) -> Iterator[Gateway]:
    """A gateway before the shared server."""
    with run_gateway(server.target) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium."""
    with chromium() as started:
        yield started


@pytest.fixture
def playground(browser: Any) -> Iterator[Callable[..., Playground]]:
    """Open the page of a gateway; at the end, no page has complained, or asked another host."""
    pages: list[Playground] = []

    def visit(gateway: Gateway, **options: Any) -> Playground:
        pages.append(Playground(browser, f"{gateway.url}/", **options))
        return pages[-1]

    yield visit
    for page in pages:
        page.close()
