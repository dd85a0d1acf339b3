"""Generate dates, one of several answers, and JSON by a schema: texts that must match.

    python examples/constrained.py 127.0.0.1:50051

Needs `pip install rill-text` and a server of a model that knows digits, quotes and braces.
"""

import json
import sys

from rill import Client

DATE = r"(19|20)\d\d-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "born": {"type": "string", "format": "date"},
        "children": {"type": "integer", "minimum": 0, "maximum": 20},
    },
    "required": ["name", "born", "children"],
}

with Client(sys.argv[1]) as client:
    for seed in range(3):
        print("date:", "".join(client.generate(regex=DATE, seed=seed)))
    print("answer:", "".join(client.generate(choices=["yes", "no", "that depends"], seed=1)))

    text = client.generate(json_schema=PERSON, seed=1)
    written = "".join(text)
    assert text.usage is not None
    print("person:", json.loads(written) if text.usage.matches else f"{written}… (cut at max_chars)")

    # A token holds the constraint, too: the second half of a date ends where the whole one does.
    half = client.generate(regex=DATE, seed=0, max_chars=5)
    begun = "".join(half)
    print("in two calls:", begun + "".join(client.generate(resume_token=half.resume_token)))
