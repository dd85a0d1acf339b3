"""Gateways that tests share."""

from collections.abc import Iterator

import pytest
from gateways import Gateway, run_gateway
from servers import Server


@pytest.fixture(scope="session")
def gateway(server: Server) -> Iterator[Gateway]:
    """A gateway before the shared server."""
    with run_gateway(server.target) as running:
        yield running
