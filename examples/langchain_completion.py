"""Use the gateway as a completion model of LangChain.

    python examples/langchain_completion.py http://127.0.0.1:8080 "ROMEO:" "JULIET:"

Needs `pip install langchain-openai`, a server and a gateway: `rill serve bundles/demo --http-port 8080`.
"""

import sys

from langchain_core.prompts import PromptTemplate
from langchain_openai import OpenAI


def main(url: str = "http://127.0.0.1:8080", *speakers: str) -> None:
    """Write a line for each speaker in one request, then stream one text through a chain."""
    names = speakers or ("ROMEO:", "JULIET:")
    settings = {"base_url": f"{url}/v1", "api_key": "none", "temperature": 0.7, "seed": 7}
    model = OpenAI(model="", max_tokens=200, **settings)  # no name: the first model of the server

    for name, line in zip(names, model.batch([f"{name}\n" for name in names], stop=["\n"]), strict=True):
        print(f"{name} {line}")

    chain = PromptTemplate.from_template("{speaker}\n") | model
    for piece in chain.stream({"speaker": names[0]}):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
