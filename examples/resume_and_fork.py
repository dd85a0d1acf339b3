"""Keep a stream in a kilobyte, continue it exactly, and fork it.

    python examples/resume_and_fork.py 127.0.0.1:50051 "ROMEO:"

Needs `pip install rill-text` and a server: `rill serve bundles/demo`.
"""

import sys

from rill import Client


def main(target: str = "127.0.0.1:50051", prompt: str = "ROMEO:") -> None:
    """Generate 100 characters; continue from the token; compare with one uninterrupted stream; fork with a new seed."""
    with Client(target) as client:
        pieces = client.generate(prompt, max_chars=100, seed=7)
        text, token = "".join(pieces), pieces.resume_token
        print(f"{pieces.position} characters and a token of {len(token)} bytes: {text[-40:]!r}")

        rest = "".join(client.generate(resume_token=token, max_chars=100))
        whole = "".join(client.generate(prompt, max_chars=200, seed=7))
        print(f"continued: {rest[:40]!r}")
        print("the same text as without the interruption:", text + rest == whole)

        fork = "".join(client.generate(resume_token=token, max_chars=100, seed=8))
        print(f"a fork:    {fork[:40]!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
