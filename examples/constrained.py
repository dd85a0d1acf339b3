"""Generate texts that must match: a date, one of three answers, a JSON object by a schema.

    python examples/constrained.py 127.0.0.1:50051

Needs `pip install rill-text` and a server of a model that knows digits, quotes and braces:
`rill train --corpus pydoc --out runs/api --max-minutes 2`, `rill export runs/api --out bundles`,
`rill serve bundles/api`.
"""

import json
import sys

from rill import Client

DATE = r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["function", "class", "module"]},
        "line": {"type": "integer"},
    },
    "required": ["name", "kind", "line"],
}


def main(target: str = "127.0.0.1:50051") -> None:
    """Generate each with a seed; cut a date in the middle and continue it from its token."""
    with Client(target) as client:
        print("date:   ", "".join(client.generate("Released on ", regex=DATE, seed=7)))
        print("answer: ", "".join(client.generate("The answer is ", choices=["yes", "no", "perhaps"], seed=7)))

        pieces = client.generate(json_schema=SCHEMA, seed=7, max_chars=200)
        text = "".join(pieces)
        print("object: ", json.loads(text) if pieces.usage.matches else f"incomplete: {text}")

        pieces = client.generate("Released on ", regex=DATE, seed=7, max_chars=6)
        begun = "".join(pieces)
        rest = "".join(client.generate(resume_token=pieces.resume_token))
        print(f"resumed:  {begun} + {rest}")


if __name__ == "__main__":
    main(*sys.argv[1:])
