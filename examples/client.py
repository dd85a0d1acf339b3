"""Stream text from a server.

    python examples/client.py 127.0.0.1:50051 "ROMEO:"

Needs `pip install rill-text` and a server: `rill serve bundles/demo`.
"""

import sys

from rill import Client


def main(target: str = "127.0.0.1:50051", prompt: str = "ROMEO:") -> None:
    """Print 400 characters as they arrive."""
    with Client(target) as client:
        for piece in client.generate(prompt, max_chars=400, temperature=0.7, seed=7):
            print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
