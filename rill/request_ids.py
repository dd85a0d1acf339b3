"""The id of a call: the client's own or a new one, in the log and in the trailing metadata of every status.

Clients tell by it a status of this server from one of the network, which they answer by another call.
"""

import random
import re
from collections.abc import Iterable

REQUEST_ID = "x-request-id"  # in a call's metadata, and in its trailing metadata, which costs no message
LONGEST_ID = 128  # characters


def request_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the client's own id, in printable ASCII without spaces, or a new one: 16 hex digits."""
    for key, value in metadata:
        if key == REQUEST_ID and value:
            return harmless_id(str(value))
    return new_id()


def harmless_id(given: str) -> str:
    """Return an id as it can be logged and sent: printable ASCII without spaces, not too long."""
    return re.sub("[^!-~]", "_", given[:LONGEST_ID])


def new_id() -> str:
    """Return 16 random hex digits."""
    return f"{random.getrandbits(64):016x}"
