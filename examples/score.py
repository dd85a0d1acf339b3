"""Find the characters of a text that a model expected least.

    python examples/score.py 127.0.0.1:50051 "To be, or not to be"

Needs `pip install rill-text` and a server: `rill serve bundles/demo`.
"""

import sys

from rill import Client


def main(target: str = "127.0.0.1:50051", text: str = "To be, or not to be") -> None:
    """Print the total, then the five most surprising characters with their log-probabilities."""
    with Client(target) as client:
        logprobs: list[float] = []
        for message in client.score(text):
            logprobs += message.logprobs
    total = message.total
    print(f"{total.chars} characters: {total.bits_per_char:.3f} bits each, perplexity {total.perplexity:.2f}")
    for at in sorted(range(len(text)), key=logprobs.__getitem__)[:5]:
        print(f"{logprobs[at]:8.3f} nats  {text[max(at - 10, 0) : at]!r} -> {text[at]!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
