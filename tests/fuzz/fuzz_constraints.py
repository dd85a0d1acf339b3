"""A real server among random constraints: valid, invalid and hostile ones, with a paced stream beside them.

    python tests/fuzz/fuzz_constraints.py [CALLS [SEED]]

prints how they were answered; how long the stream beside them was without a message, with and without them, which
other programs on the machine lengthen; and the longest turns of the server's event loop, which they do not.
"""

import asyncio
import json
import re
import string
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import grpc
import grpc.aio
import pytest
import regex
from fuzz_inputs import json_bytes, mutated_json, text
from random_models import make_run, save_bundle
from servers import Server, run_server

from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub

SYMBOLS = tuple(sorted({*string.printable, "é"} - set("\t\r\x0b\x0c")))  # of the model: JSON can be met
AT_ONCE = 4
PACE = 250  # characters a second of the stream beside them, each in a message
MATCH_SECONDS = 1.0  # for the check of a text
Code = grpc.StatusCode
DOCUMENTED = {Code.OK, Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED, Code.CANCELLED, Code.DEADLINE_EXCEEDED}

_LETTERS = "abcxyz ,.é"
_ATOMS = (*"abcxyz,é", " ", r"\.", r"\n", "the", "[a-d]", "[^a-y]", r"\w", ".", r"[\w.]", r"\S", r"[^\W\d]", "(?:ab|c)")
_COUNTS = ("*", "+", "?", "{2}", "{0,3}", "{2,}", "*?", "+?", "??", "{1,2}?")
_HOSTILE = (
    "(a|aa)*" * 30 + "b",
    "(a*)*" * 20,
    "((((a{9}){9}){9}){9}){9}",
    "[ab]*a[ab]{%d}",
    "(.*a.*){%d}",
    "(%d|[a-c]+|a{3,}){200}",
    "(" * 3000 + "a" + ")" * 3000,
    "(?:" * 90 + "a" + ")*" * 90,
    "a{99999999999}",
    "a{%d}",
    "(a?){%d}a{300}",
    "|".join("ab" * at for at in range(1, 160)),
    "|" * 16_000,
    "a" * 16_384,
    "a" * 16_385,
    "[" + "".join(map(chr, range(0x4E00, 0x5E00))) + "]",
    r"(a)\1",
    "(?P<n>a)(?P=n)",
    "a(?=b)",
    "a(?!b)",
    "(?<=a)b",
    "(?<!a)b",
    "^a",
    "a$",
    r"\ba",
    r"a\Z",
    "(?i)a",
    "(?i:a)",
    "(?x) a # b",
    "a*+",
    "(?>a|b)c",
    "(a)?(?(1)b|c)",
    "(?#c)a",
    "[a-",
    "(a",
    "a)",
    "*",
    "\\",
    "\0",
    "😀",
    "\ufffd+",
    "[\ud7ff-\ue000]",
    r"\N{BULLET}",
    r"\u0061",
    r"[^\s\S]",
    "",
)


def expression(random: Random, depth: int = 3) -> str:
    """A small regular expression that Python's `re` takes."""
    if not depth or random.random() < 0.3:
        return random.choice(_ATOMS)
    parts = [expression(random, depth - 1) for _ in range(random.choice((1, 2, 2, 3)))]
    match random.randrange(3):
        case 0:
            return f"(?:{'|'.join(parts)})"
        case 1:
            return "".join(parts)
        case _:
            return f"(?:{''.join(parts)}){random.choice(_COUNTS)}"


def schema(random: Random, depth: int = 2) -> dict[str, object]:
    """A JSON Schema, most of whose keywords are common."""
    kinds = ["string", "integer", "boolean", "null", "number", "enum", "const", "pattern"]
    made: dict[str, object] = {}
    match random.choice(kinds + ["object", "array", "any"] * (depth > 0)):
        case "object":
            names = random.sample(("a", "b", "name", "é", 'x"y'), random.randint(0, 3))
            made["type"], made["properties"] = "object", {name: schema(random, depth - 1) for name in names}
            made["required"] = random.sample(names, random.randint(0, len(names)))
        case "array":
            made["type"], made["items"] = "array", schema(random, depth - 1)
            if random.random() < 0.5:
                made["minItems"], made["maxItems"] = random.randint(0, 2), random.choice((2, 3, 10**9))
        case "any":
            made["anyOf"] = [schema(random, depth - 1) for _ in range(2)]
        case "enum":
            made["enum"] = [random.choice((1, "a", None, True, 1.5, [], {"a": 1})) for _ in range(3)]
        case "const":
            made["const"] = random.choice(("a", 1, None))
        case "pattern":
            made["type"] = "string"
            made["pattern"] = random.choice(("[a-c]+", *_HOSTILE[:8])).replace("%d", "50")
        case kind:
            made["type"] = kind
            if kind == "string":
                made["maxLength"] = random.randint(0, 5)
    return made


def constraint(random: Random) -> tuple[pb.Constraint, str | None]:
    """A constraint, and its expression if Python's `re` can check a text by it."""
    made, checked = pb.Constraint(), None
    if random.random() < 0.3:
        made.terminator = random.choice(("", "\n", "a", "z", "é", "ab", "0", "<unk>", "😀", text(random)))
    match random.choices(("valid", "mutated", "hostile", "choices", "schema", "noise"), (8, 4, 5, 4, 4, 1))[0]:
        case "valid":
            made.regex = checked = expression(random)
        case "mutated":
            made.regex = _changed(random, expression(random))
        case "hostile":
            chosen = random.choice(_HOSTILE).replace("%d", str(random.choice((3, 12, 14, 40, 300, 5000, 70_000))))
            made.regex = chosen if random.random() < 0.7 else chosen + _changed(random, expression(random))
        case "choices":
            most = random.choice((0, 1, 3, 3, 300, 5000))
            made.choices.text.extend(text(random, 8, _LETTERS) for _ in range(most))
        case "schema":
            value = schema(random) if random.random() < 0.7 else mutated_json(random, schema(random))
            written = json_bytes(random, value).decode(errors="ignore") if random.random() < 0.2 else json.dumps(value)
            made.json_schema = written[: random.choice((len(written), len(written), len(written) // 2))]
        case _:
            made.regex = text(random, 200)
    return made, checked


def _changed(random: Random, pattern: str) -> str:
    for _ in range(random.choice((1, 2, 5))):
        at = random.randint(0, len(pattern))
        put = random.choice((*"()[]{}|*+?^$\\.,-0a9:<=!P", "(?", "{3,", r"\d", ""))
        pattern = pattern[:at] + put + pattern[at + random.choice((0, 1)) :]
    return pattern


@dataclass
class Answers:
    """What came of the calls: `statuses`, `seconds` until the end of each, and gaps in the stream beside them."""

    statuses: Counter[str] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)


class Fuzzing:
    """`calls` with random constraints to a server. Raises AssertionError."""

    def __init__(self, target: str, calls: int, random: Random) -> None:
        self._target, self._left, self._random = target, calls, random
        self.answers = Answers()

    async def run(self) -> Answers:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self._target, options) as channel:
            beside = asyncio.create_task(self._stream_beside(TextGenerationStub(channel)))
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(self._attack())
            beside.cancel()
        return self.answers

    async def _stream_beside(self, stub: TextGenerationStub) -> None:
        """One that is paced: the time between two messages is how long it has stood still."""
        call, last = stub.Generate(pb.GenerateRequest(chars_per_second=PACE)), None
        try:
            async for _ in call:
                now = time.perf_counter()
                if last is not None:
                    self.answers.gaps.append(now - last - 1 / PACE)
                last = now
        finally:
            call.cancel()

    async def _attack(self) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self._target, options) as channel:
            stub = TextGenerationStub(channel)
            while self._left > 0:
                self._left -= 1
                await self._call(stub)

    async def _call(self, stub: TextGenerationStub) -> None:
        random = self._random
        made, checked = constraint(random)
        sampling = pb.Sampling(seed=random.getrandbits(64), constraint=made)
        if random.random() < 0.1:
            for letter in random.sample("abcxyz\n", random.randint(1, 7)):
                sampling.logit_bias[letter] = float("-inf")
        request = pb.GenerateRequest(sampling=sampling, max_chars=random.choice((1, 20, 60)))
        started, got, last = time.perf_counter(), "", None
        call = stub.Generate(request, timeout=random.choice((0.02, 30, 30, 30)))
        try:
            async for message in call:
                got, last = got + message.text, message
                if random.random() < 0.01:
                    call.cancel()
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():
                raise
        except grpc.RpcError:
            pass
        code, said = await call.code(), await call.details() or ""
        assert code in DOCUMENTED, f"{made!r} for {code.name}: {said}"
        assert code is not Code.INVALID_ARGUMENT or said.strip(), repr(made)
        if code is Code.OK:
            assert last is not None
            assert last.usage.HasField("matches"), repr(made)
            if last.finish_reason == pb.FINISH_REASON_STOP:
                assert last.usage.matches, repr(made)
            if checked is not None:
                matches = regex.fullmatch(checked, got, timeout=MATCH_SECONDS) is not None
                assert last.usage.matches == matches, (checked, got)
                assert regex.fullmatch(checked, got, partial=True, timeout=MATCH_SECONDS), (checked, got)
                assert not matches or re.fullmatch(checked, got), (checked, got)
        self.answers.statuses[code.name] += 1
        self.answers.messages[re.sub(r"'[^']*'|\d[\d,]*|\"[^\"]*\"", "…", said)[:60]] += 1
        self.answers.seconds.append(time.perf_counter() - started)


def fuzz_constraints(server: Server, calls: int, random: Random) -> Answers:
    """Fuzz a running server, which lives on. Raises AssertionError."""
    try:
        answers = asyncio.run(Fuzzing(server.target, calls, random).run())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    with server.client() as client:
        assert len("".join(client.generate("a", max_chars=50))) == 50
    return answers


@contextmanager
def timed_server(bundle: Path, turns: Path) -> Iterator[Server]:
    """A server that writes its longest turns into a file when it ends (`timed_server`)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RILL_TURNS", str(turns))
        with run_server(bundle, program=(str(Path(__file__).parent / "timed_server.py"),)) as server:
            yield server


def milliseconds(turns: Path) -> float:
    """The longest turn of a server that has ended."""
    return float(turns.read_text().partition(" ms ")[0])


async def _alone(target: str, seconds: float) -> list[float]:
    fuzzing = Fuzzing(target, 0, Random(0))
    async with grpc.aio.insecure_channel(target) as channel:
        task = asyncio.create_task(fuzzing._stream_beside(TextGenerationStub(channel)))
        await asyncio.sleep(seconds)
        task.cancel()
    return fuzzing.answers.gaps


def _show(name: str, seconds: list[float]) -> None:
    values = sorted(1000 * value for value in seconds)
    at = {share: values[min(int(share * len(values)), len(values) - 1)] for share in (0.5, 0.99, 0.999, 1)}
    print(f"{name}: {len(values):,}; ms: " + ", ".join(f"p{100 * share:g} {value:.1f}" for share, value in at.items()))


def main() -> None:
    calls, seed = (int(value) for value in [*sys.argv[1:], *("10000", "1")[len(sys.argv) - 1 :]])
    with TemporaryDirectory() as folder:
        save_bundle(make_run(SYMBOLS), Path(folder) / "tiny")
        with timed_server(Path(folder) / "tiny", Path(folder) / "turns") as server:
            _show("gaps alone", asyncio.run(_alone(server.target, 20)))
            started = time.perf_counter()
            answers = fuzz_constraints(server, calls, Random(seed))
            print(f"{calls} calls in {time.perf_counter() - started:.0f} s: {dict(answers.statuses)}")
            _show("gaps beside them", answers.gaps)
            _show("calls", answers.seconds)
            for said, count in answers.messages.most_common(60):
                print(f"{count:6} {said}")
            status, log = server.stop()
            assert status == 0, log[-2000:]
            assert "Traceback" not in log, log[-4000:]
        print((Path(folder) / "turns").read_text())


if __name__ == "__main__":
    main()
