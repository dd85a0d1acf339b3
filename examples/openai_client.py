"""Stream a text through the gateway by OpenAI's own package.

    python examples/openai_client.py http://127.0.0.1:8080 "ROMEO:"

Needs `pip install openai`, a server and a gateway: `rill serve bundles/demo --http-port 8080`.
"""

import sys

from openai import OpenAI


def main(url: str = "http://127.0.0.1:8080", prompt: str = "ROMEO:") -> None:
    """Print 400 symbols as they arrive, then the same text from its middle on, by a resume token."""
    client = OpenAI(base_url=f"{url}/v1", api_key="none")  # or the bearer token, if the server asks for one
    model = client.models.list().data[0].id
    for chunk in client.completions.create(
        model=model, prompt=prompt, max_tokens=400, temperature=0.7, seed=7, stream=True
    ):
        print(chunk.choices[0].text, end="", flush=True)

    half = client.completions.create(model=model, prompt=prompt, max_tokens=200, temperature=0.7, seed=7)
    token = half.rill["resume_token"]  # Rill's own: OpenAI's package keeps what it does not know
    rest = client.completions.create(model=model, prompt="", max_tokens=200, extra_body={"resume_token": token})
    print(f"\n[the second half again: {rest.choices[0].text[:40]!r}…]")


if __name__ == "__main__":
    main(*sys.argv[1:])
