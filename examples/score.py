"""Find the characters of a text that a model expected least.

    python examples/score.py 127.0.0.1:50051 "To be, or not to be"

Needs `pip install rill-text` and a server: `rill serve bundles/demo`.
"""

import sys

from rill import Client


def main(target: str = "127.0.0.1:50051", text: str = "To be, or not to be") -> None:
    """Print the total, then the five most surprising characters with their log-probabilities."""
    with Client(target) as client:
        entries = []
        for message in client.score(text, top_logprobs=0):
            entries += message.top
    total = message.total
    print(f"{total.chars} characters: {total.bits_per_char:.3f} bits each, perplexity {total.perplexity:.2f}")
    for at in sorted(range(len(entries)), key=lambda at: entries[at].logprob)[:5]:
        before = "".join(entry.character for entry in entries[max(at - 10, 0) : at])
        print(f"{entries[at].logprob:8.3f} nats  {before!r} -> {entries[at].character!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
