"""A server of texts that must match, and its calls by gRPC itself."""

import json
from dataclasses import dataclass
from pathlib import Path

from calls import joined, refusal
from google.rpc.error_details_pb2 import BadRequest

from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub


@dataclass(repr=False)
class Served:
    """A server of a model of characters, one of molecules, and one whose bundle is of before constraints."""

    target: str
    stub: TextGenerationStub
    bundles: dict

    def messages(self, **request):
        """All messages of a call."""
        return list(self.stub.Generate(request_of(**request), timeout=60))

    def text(self, **request):
        """The text of a call, and its last message."""
        messages = self.messages(**request)
        return joined(messages), messages[-1]

    def refusal(self, **request):
        """The status of a call that must fail, the field that it names, and the message."""
        error, details = refusal(self.stub.Generate(request_of(**request), timeout=60))
        field = details[BadRequest].field_violations[0].field if BadRequest in details else ""
        return error.code().name, field, error.details()


def constraint_of(pattern=None, choices=None, schema=None, terminator=None):
    if choices is not None:
        return pb.Constraint(choices=pb.Constraint.Choices(text=choices), terminator=terminator)
    return pb.Constraint(regex=pattern, json_schema=schema, terminator=terminator)


def request_of(regex=None, constraint=None, seed=None, **fields):
    """A request; `regex` is for short, `constraint` are arguments of `constraint_of` or a message.

    The seed is 1, unless there is a token.
    """
    if seed is None and not fields.get("resume_token"):
        seed = 1
    own = {name: fields.pop(name) for name in ("temperature", "top_k", "top_p", "logit_bias") if name in fields}
    if regex is not None:
        constraint = constraint_of(regex)
    elif isinstance(constraint, dict):
        constraint = constraint_of(**constraint)
    return pb.GenerateRequest(sampling=pb.Sampling(seed=seed, constraint=constraint, **own), **fields)


def forget_constraints(folder: Path):
    """Make a bundle as it was before there were constraints."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest.pop("constrained").values():
        (folder / entry["file"]).unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
