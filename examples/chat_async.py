"""Write a text in turns with a model, over one live session, in asyncio.

    python examples/chat_async.py 127.0.0.1:50051 "ROMEO:" "JULIET:"

The model reads each line and continues it. Needs `pip install rill-text` and a server: `rill serve bundles/demo`.
"""

import asyncio
import sys

from rill import AsyncClient


async def main(target: str = "127.0.0.1:50051", *lines: str) -> None:
    """Feed each line, report how much the model expected it, and print 200 characters or up to an empty line."""
    async with AsyncClient(target) as client, client.interact(temperature=0.7, seed=7) as session:
        for line in lines or ("ROMEO:", "JULIET:"):
            fed = await session.feed(f"{line}\n")
            print(f"> {line}   ({fed.logprob / fed.chars:.2f} nats a character)")
            async for piece in session.generate(max_chars=200, stop=["\n\n"], chars_per_second=500):
                print(piece, end="", flush=True)
            session.update(temperature=0.4)  # calmer from here on
            print()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
