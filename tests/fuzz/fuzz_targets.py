"""What is fuzzed without a connection: everything that reads what others wrote.

A target makes inputs from a `random.Random` and tries them. Trying one returns how it was answered, a status or the
name of a documented error; whatever else is raised is a bug. `test_fuzz` tries a few thousand, `make fuzz` a million.
"""

# ruff: noqa: PT017  # what an error says is looked at where others have none
import atexit
import json
import os
import struct
from collections.abc import Callable
from itertools import pairwise
from math import inf, nan
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import NamedTuple

import grpc
import numpy as np
import safetensors.torch
import torch
from fuzz_inputs import json_bytes, message, mutated, mutated_json, text
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from reference_texts import first_stop, undecided

from rill.bundle import FILES, MANIFEST, Bundle, BundleError, model_id, read_bundle
from rill.cli.batch.input import PromptError, check, read
from rill.cli.batch.numbering import Numbering
from rill.cli.batch.output import BatchOutput, Fingerprint, OutputError
from rill.cli.generate import json_line
from rill.client.errors import ServerError
from rill.client.failover import Failover
from rill.client.scoring import Scoring
from rill.export.errors import ForeignError
from rill.export.foreign.files import load_state_dict_file
from rill.export.foreign.vocabularies import load_vocabulary_file
from rill.export.write import is_replaceable, manifest_of
from rill.sampling import Sampling
from rill.serve.api.constraints import packed, unpacked
from rill.serve.api.requests import STOP_CHARACTERS, check_text, parameters_of, score_spec_of, spec_of
from rill.serve.api.resume_tokens import ResumeTokens, Resumption, read_key
from rill.serve.api.statuses import set_status
from rill.serve.config import ServerConfig
from rill.serve.constraints.patterns import CHOICES_BYTES, REGEX_BYTES, SCHEMA_BYTES, Pattern
from rill.serve.engine.rows import Rows
from rill.serve.engine.stops import StopFinder
from rill.serve.engine.text_codec import GivenText, TextCodec
from rill.serve.engine.types import Snapshot, StreamSpec
from rill.serve.errors import ServeError, StartError
from rill.train.config import ModelConfig, TrainingConfig
from rill.train.errors import CorpusError, RunError
from rill.train.record.folder import RunConfig, save_config
from rill.train.record.run import load_run
from rill.train.text.corpus import load_corpus
from rill.train.text.decoding import decode
from rill.train.text.tagging import load_tagged
from rill.v1 import rill_pb2 as pb
from rill.vocabulary import UNKNOWN, UnknownCharacterError, Vocabulary

METADATA_BYTES = 8192  # of all trailing metadata: beyond that, gRPC may put an error of its own in place of the status

# ---- requests and tokens

LETTERS = ("\n", " ", "a", "b", "c", "é")
NUMERICS = "onnxruntime-0-fuzz"
KEYS = [bytes(range(32)), bytes(range(1, 33))]
SERVER = ServerConfig(max_prompt=1000, max_score_chars=2000)


def _bundle(symbols=LETTERS, salt=b"", task="generate"):
    graphs = {key: salt + key.encode() for key in FILES} if task == "generate" else {"model": salt}
    model = {"task": task, "cell": "lstm", "layers": 2, "hidden": 3, "bidirectional": task == "tag"}
    labels = ("x", "y") if task == "tag" else ()
    vocabulary = Vocabulary(symbols, tokenizer="characters" if task == "generate" else "sequences")
    shape = (2 if task == "generate" else 4, "batch", 3)
    states = (("state_h", shape), ("state_c", shape))
    identity = model_id(graphs, vocabulary, labels)
    return Bundle("fuzz", identity, model, "fp32", vocabulary, states, graphs, labels)


BUNDLE, OTHER_BUNDLE = _bundle(), _bundle(salt=b"other")
MODELS = [
    SimpleNamespace(bundle=bundle, codec=TextCodec(bundle.vocabulary))
    for bundle in (BUNDLE, _bundle((UNKNOWN, *LETTERS)))
]
MODEL = MODELS[0]
TOKENS = ResumeTokens(KEYS, 0)
_ENDED = ResumeTokens(KEYS, -1000)  # seals what has expired
_ROWS = Rows(2, len(LETTERS))


def _sealed(tokens, bundle=BUNDLE, position=0, stops=(), begun="", constraint=b"", **sampling):
    state = {name: np.full((2, 3), 0.5, np.float32) for name, _ in bundle.states}
    spec = StreamSpec(
        np.zeros(1, np.int64),
        0,
        Sampling(**sampling),
        7,
        0,
        stops=stops,
        include_stop=bool(begun),
        constraint=constraint,
    )
    return tokens.seal(bundle, NUMERICS, spec, Snapshot(position, 1, state, begun, automaton_state=2))


GOOD_TOKENS = [
    _sealed(TOKENS),
    _sealed(TOKENS, position=10**12, stops=("ab", "a" * 100), begun="a", temperature=0.0, top_k=3),
    _sealed(ResumeTokens(KEYS[1:], 10**9), top_p=0.5, min_p=0.1, logit_bias={1: 2.0, 2: float("-inf")}),
    _sealed(TOKENS, position=4, stops=("b",), constraint=packed(Pattern("regex", "[ab]+", None))),
]
BAD_TOKENS = [
    _sealed(_ENDED),
    _sealed(TOKENS, OTHER_BUNDLE),
    _sealed(ResumeTokens([bytes(32)], 0)),
    b"",
    b"x",
    GOOD_TOKENS[0][:-1],
]


def _run(coroutine):
    """What a coroutine returns that gives way to others, and waits for nothing."""
    try:
        while True:
            coroutine.send(None)
    except StopIteration as end:
        return end.value


class _Context:
    """Takes the status of a call, as far as a client would get it."""

    def __init__(self):
        self.metadata = (("x-request-id", "i" * 128),)  # the longest
        self.trailing_metadata = lambda: self.metadata

    def set_trailing_metadata(self, metadata):
        self.metadata = metadata

    def set_code(self, code):
        self.code = code

    def set_details(self, said):
        self.said = said

    def check(self):
        escaped = sum(1 if 32 <= byte < 127 and byte != 37 else 3 for byte in self.said.encode())
        sent = escaped + sum(len(key) + 4 * -(-len(value) // 3) + 32 for key, value in self.metadata)
        assert sent < METADATA_BYTES, f"{sent} bytes of trailing metadata"
        assert self.said
        assert self.code not in (grpc.StatusCode.OK, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)


def _status(error):
    """The status that a server ends a call with."""
    context = _Context()
    set_status(context, error)
    context.check()
    return context.code.name


def _spec(message, held=None):
    """What the service makes of a message."""
    parameters = parameters_of(message)
    if parameters.resume_token:
        held = TOKENS.open(parameters.resume_token).resumption(BUNDLE, NUMERICS)
    return _run(spec_of(parameters, held, MODEL, SERVER))


def _is_allowed(request):
    """What rill.proto says of the fields of a request without a token."""
    sampling, bias = request.sampling, request.sampling.logit_bias
    return (
        set(request.prompt) <= set(LETTERS)
        and len(request.prompt) <= SERVER.max_prompt
        and request.max_chars < 2**62
        and all(request.stop)
        and len(set(request.stop)) <= 32
        and sum(map(len, set(request.stop))) <= STOP_CHARACTERS
        and request.logprobs <= 20
        and 0 <= request.chars_per_second < inf
        and 0 <= sampling.temperature < inf
        and (0 < sampling.top_p <= 1 or not sampling.HasField("top_p"))
        and 0 <= sampling.min_p <= 1
        and set(bias) <= set(LETTERS)
        and all(value < inf for value in bias.values())
        and sum(value == -inf for value in bias.values()) < len(LETTERS)
        and _is_readable(sampling.constraint)
    )


def _is_readable(constraint):
    """What is known of a constraint before it is compiled."""
    match constraint.WhichOneof("kind"):
        case None:
            return constraint == pb.Constraint()
        case "choices":
            texts, most = constraint.choices.text, CHOICES_BYTES
        case kind:
            texts, most = [getattr(constraint, kind)], REGEX_BYTES if kind == "regex" else SCHEMA_BYTES
    return bool(texts) and sum(len(text.encode()) for text in texts) <= most


def try_generate(data):
    """A request becomes an order that the engine can take, and whose token holds the same; or it is refused."""
    try:
        request = pb.GenerateRequest.FromString(data)
    except DecodeError:
        return "no message"
    try:
        spec = _spec(request)
    except ServeError as error:
        assert request.resume_token or not _is_allowed(request), error
        return _status(error)
    assert _is_allowed(request)
    _ROWS.read[0] = spec.position
    _ROWS.enter(0, spec, 1e5)
    _ROWS.settle()
    assert _ROWS.next_due(1e5) >= 0
    assert _ROWS.room(2e5).tolist() >= [1]
    _ROWS.leave(0)
    state = spec.state or {name: np.zeros((2, 3), np.float32) for name, _ in BUNDLE.states}
    snapshot = Snapshot(spec.position, int(spec.prompt[-1]), state, spec.partial_stop, automaton_state=7)
    held = TOKENS.open(TOKENS.seal(BUNDLE, NUMERICS, spec, snapshot)).resumption(BUNDLE, NUMERICS)
    assert (held.seed, held.stops, held.include_stop) == (spec.seed, spec.stops, spec.include_stop)
    assert held.sampling == spec.sampling
    assert (held.snapshot.position, held.snapshot.partial_stop) == (spec.position, spec.partial_stop)
    if kind := request.sampling.constraint.WhichOneof("kind"):
        assert unpacked(held.constraint).kind == kind
        assert held.snapshot.automaton_state == 7
    return "OK"


def try_score(data):
    """A text becomes what is read first and what is read for its log-probabilities; or it is refused."""
    try:
        request = pb.ScoreRequest.FromString(data)
    except DecodeError:
        return "no message"
    text = request.text
    is_allowed = set(text) <= set(LETTERS) and len(text) <= SERVER.max_score_chars and request.top_logprobs <= 20
    try:
        spec = _run(score_spec_of(request, text, _spec(request), MODEL, SERVER))
    except ServeError as error:
        assert request.resume_token or not is_allowed, error
        return _status(error)
    assert is_allowed
    given = GivenText(text, MODEL.codec, spec.prompt_chars)
    read = [*spec.prompt[:][1 - spec.prompt_chars :], *given.ids(0, len(given))]
    assert "".join(BUNDLE.vocabulary.symbols[token] for token in read) == text
    assert spec.prompt_chars == bool(request.as_prompt and text and not request.resume_token)
    assert (spec.logprobs is not None) == request.HasField("top_logprobs")
    return "OK"


def try_interact(data):
    """What actions ask for, as `rill.serve.api.interact` does."""
    try:
        action = pb.InteractRequest.FromString(data)
    except DecodeError:
        return "no message"
    try:
        match action.WhichOneof("action"):
            case "open":
                _spec(action.open)
            case "feed":
                _run(check_text(action.feed, MODEL, SERVER.max_prompt, "feed"))
            case "generate":
                _spec(action.generate)
            case "update":
                held = TOKENS.open(GOOD_TOKENS[1]).resumption(BUNDLE, NUMERICS)
                spec = _spec(action.update, held)
                assert (spec.stops, spec.partial_stop) == (held.stops, held.snapshot.partial_stop)
    except ServeError as error:
        return _status(error)
    return "OK"


def make_request(kind):
    def make(random):
        request = message(random, kind, (*GOOD_TOKENS, *BAD_TOKENS))
        if kind is pb.GenerateRequest and random.random() < 0.01:
            for letter in LETTERS:
                request.sampling.logit_bias[letter] = -inf
        made = request.SerializeToString()
        return mutated(random, made, [made]) if random.random() < 0.3 else made

    return make


def make_token(random):
    tokens = GOOD_TOKENS + BAD_TOKENS
    if random.random() < 0.02:
        return random.choice(tokens)
    data = mutated(random, random.choice(tokens), tokens)
    return bytes([random.choice((1, 2))]) + data[1:] if random.random() < 0.3 else data


def try_token(data):
    """Nothing is taken but what was issued."""
    try:
        token = TOKENS.open(data)
        held = token.resumption(BUNDLE, NUMERICS)
    except ServeError as error:
        assert data not in GOOD_TOKENS
        return _status(error)
    assert data in GOOD_TOKENS, "a token was accepted that nobody issued"
    assert BUNDLE.model_id.startswith(token.model_id)
    assert isinstance(held, Resumption)
    return "OK"


# ---- texts

CODECS = [
    (vocabulary, TextCodec(vocabulary))
    for vocabulary in (
        Vocabulary(LETTERS),
        Vocabulary((UNKNOWN, *LETTERS)),
        Vocabulary(("\U0010ffff", "\0", "😀", "漢", "a")),
    )
]


def make_text(random):
    return bytes([random.randrange(3)]) + text(random, 40).encode()


def try_codec(data):
    """Text to ids and back, as the vocabulary has it."""
    vocabulary, codec = CODECS[(data[:1] or b"\0")[0] % 3]
    words = data[1:].decode(errors="replace")
    try:
        ids = codec.encode(words)
    except UnknownCharacterError as error:
        assert words[error.position] == error.character
        assert all(vocabulary.id_of(character) is not None for character in words[: error.position])
        return "unknown character"
    assert ids.tolist() == vocabulary.encode(words)
    if words:
        (back,) = codec.decode(ids[:, None], np.zeros(1, np.int64), np.array([len(words)]))
        assert back == "".join(symbol if symbol in vocabulary.symbols else "\ufffd" for symbol in words)
    return "OK"


def make_stops(random):
    def words(most, least=0):
        return "".join(random.choice("ab") for _ in range(random.randint(least, most)))

    stops = "|".join(words(5, 1) for _ in range(random.randint(1, 4)))
    pieces = "|".join(words(6) for _ in range(random.randint(0, 8)))
    return f"{random.randrange(2)}{stops}#{pieces}".encode()


def try_stops(data):
    """What goes out is all that is no stop and cannot become one."""
    first, _, second = data.decode(errors="replace").partition("#")
    stops = [stop for stop in first[1:].split("|") if stop] or ["a"]
    include, known, out = first[:1] == "1", "", ""
    finder = StopFinder(stops, include)
    for piece in second.split("|"):
        known += piece
        new, stopped = finder.feed(piece)
        out += new
        found = first_stop(known, stops)
        assert stopped is (found is not None)
        if found:
            assert out == known[: found[1] if include else found[0]]
            return "stopped"
        assert out == known[: undecided(known, stops)]
    assert out + finder.flush() == known
    return "OK"


# ---- what a server says to a client

_CODES = sorted(grpc.StatusCode, key=lambda status: status.value[0])
_ERROR, _CUT = b"\xfe", b"\xff\xfe"  # an answer that is an error, and what stands between answers


class _Failed(grpc.RpcError):
    """A call that ended with bytes of a status, some of which may not be one."""

    def __init__(self, data):
        self._code, self._details = _CODES[(data[:1] or b"\0")[0] % len(_CODES)], data[1:]

    def code(self):
        return self._code

    def details(self):
        return None if len(self._details) % 2 else "details"

    def trailing_metadata(self):
        return (("grpc-status-details-bin", self._details),)


def make_answers(random):
    def output():
        if random.random() < 0.3:
            return message(random, pb.GenerateResponse, (b"", b"token")).SerializeToString()
        nonlocal position
        words = "abcdef"[: random.randint(0, 6)]
        made = pb.GenerateResponse(text=words, position=position % 2**64, seed=random.choice((0, 7)))
        position += len(words)
        made.resume_token = random.choice((b"", b"", b"token"))
        made.finish_reason = random.choice((0, 0, 0, 0, 1, 2, 3, 99))
        return made.SerializeToString()

    def failure():
        reason = random.choice(("RESUME_TOKEN_EXPIRED", "RESUME_TOKEN_OTHER_MODEL", "ENGINE_ROUND_FAILED"))
        info = random.choice((ErrorInfo(reason=reason), message(random, RetryInfo), pb.Usage()))
        packed = Packed()
        packed.Pack(info)
        code = random.choice((3, 8, 9, 13, 14, 14, 14, random.randrange(17)))
        return _ERROR + bytes([code]) + Status(details=[packed]).SerializeToString()

    position = random.choice((0, 0, 0, 5, 2**63, 2**64 - 4))
    request = pb.GenerateRequest(
        prompt="a", max_chars=random.choice((0, 1, 5, 10)), resume_token=random.choice((b"", b"own")), resume_every=2
    )
    answers = [output() if random.random() < 0.7 else failure() for _ in range(random.randint(1, 12))]
    return _CUT.join([request.SerializeToString(), *answers])


def try_answers(data):
    """A client goes on, gives up with a ServerError, or has a whole text; whatever servers say."""
    first, *frames = data.split(_CUT)
    try:
        request = pb.GenerateRequest.FromString(first)
        request.max_chars = min(request.max_chars, 2**62)
    except DecodeError:
        return "no message"
    clock = SimpleNamespace(now=0.0)
    known = Failover(request, 2, 5.0, 60.0, lambda: clock.now)
    try:
        shown = _all_calls(known, frames, pb.GenerateResponse, clock)
    except ServerError as error:
        assert str(error)
        return error.code.name
    for before, after in pairwise(shown):
        assert after.position == before.position + len(before.text)
    for output in shown:
        json_line(output, output is shown[0])
    return "OK"


def _all_calls(known, frames, kind, clock):
    answers, shown = iter(frames), []
    for _ in range(2 * len(frames) + 100):  # it gives up by itself
        asked = known.request()
        if asked is None:
            break
        type(asked).FromString(asked.SerializeToString())
        shown += _one_call(known, answers, kind, clock)
    else:
        raise AssertionError("a client goes on for ever")
    if (last := known.lost_end()) is not None:
        shown.append(last)
    return shown


def _one_call(known, answers, kind, clock):
    error: grpc.RpcError | None = _Failed(b"\x0e")
    for frame in answers:
        if frame.startswith(_ERROR):
            error = _Failed(frame[1:])
            break
        try:
            output = kind.FromString(frame)
        except DecodeError:
            break
        is_last = output.HasField("total") if kind is pb.ScoreResponse else output.finish_reason == 1
        if (seen := known.received(output)) is not None:
            yield seen
        if is_last:
            error = None
            break
    else:
        clock.now += 1
    wait = known.ended(error)
    assert 0 <= wait <= 60
    clock.now += wait + 0.01


def make_scores(random):
    """A request for a score, and what servers answer to it, over several calls."""

    def output():
        nonlocal position
        if random.random() < 0.2:
            return message(random, pb.ScoreResponse, (b"", b"token")).SerializeToString()
        count, begin = random.randint(0, 5), position
        values = [random.choice((-1.0, -2.5, -inf, nan)) if random.random() < 0.1 else -1.0 for _ in range(count)]
        if position == 0 and values and request.as_prompt and random.random() < 0.9:
            values[0] = nan
        made = pb.ScoreResponse(position=begin, logprobs=values)
        if request.HasField("top_logprobs") and random.random() < 0.95:
            made.top.extend(pb.CharLogprob(character="a", logprob=value) for value in values)
        position += count
        if random.random() < 0.2:
            made.total.chars = position
        return made.SerializeToString()

    request = pb.ScoreRequest(text="a" * random.choice((0, 1, 7)), as_prompt=random.random() < 0.5)
    request.resume_token = random.choice((b"", b"", b"token"))
    if random.random() < 0.5:
        request.top_logprobs = random.choice((0, 1, 20))
    answers = [request.SerializeToString()]
    for _ in range(random.randint(1, 4)):  # calls
        position = 0
        answers += [output() for _ in range(random.randint(0, 6))]
        answers.append(_ERROR + bytes([random.choice((8, 13, 14, 14))]))
    return _CUT.join(answers)


def try_scores(data):
    """A client shows every entry once, beside its alternatives, or gives up with a ServerError."""
    first, *frames = data.split(_CUT)
    try:
        request = pb.ScoreRequest.FromString(first)
    except DecodeError:
        return "no message"
    clock = SimpleNamespace(now=0.0)
    known = Scoring(request, 2, 5.0, 60.0, lambda: clock.now)
    try:
        shown = _all_calls(known, frames, pb.ScoreResponse, clock)
    except ServerError as error:
        assert str(error)
        return error.code.name
    at = 0
    for output in shown:
        assert output.position == at
        at += len(output.logprobs)
        if request.HasField("top_logprobs"):
            assert len(output.top) == len(output.logprobs)
    assert [output.HasField("total") for output in shown] == [False] * (len(shown) - 1) + [True]
    return "OK"


# ---- files

_MEMORY = Path("/dev/shm")  # where there is one: files by the hundred thousand
_FOLDER = Path(mkdtemp(prefix="rill-fuzz-", dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None))
atexit.register(rmtree, _FOLDER)


def _file(name, data):
    path = _FOLDER / name
    path.write_bytes(data)
    return path


def _bundle_folder(name, bundle):
    folder = _FOLDER / name
    folder.mkdir()
    for key, graph in bundle.graphs.items():
        (folder / FILES[key]).write_bytes(graph)
    return folder, manifest_of(bundle, {"loss": 1.5}, {"logits": 1e-6})


TAGGER = _bundle(("ab", "c"), task="tag")
BUNDLES = [_bundle_folder("generator", BUNDLE), _bundle_folder("tagger", TAGGER)]


def make_bundle(random):
    """A manifest, and the bytes of model.onnx where they are others than they should be."""
    at = random.randrange(2)
    manifest = BUNDLES[at][1]
    for _ in range(random.choice((0, 1, 1, 2, 5))):
        manifest = mutated_json(random, manifest)
    data = json_bytes(random, manifest)
    if random.random() < 0.2:
        data = mutated(random, data, [data]).replace(b"\0", b"")
    return bytes([at]) + data + (b"\0" + mutated(random, b"model", [b"x"]) if random.random() < 0.05 else b"")


def try_bundle(data):
    """A folder is a bundle that the server can describe, or it is refused with a reason."""
    folder, written = BUNDLES[(data[:1] or b"\0")[0] % 2]
    manifest, cut, graph = data[1:].partition(b"\0")
    right = (folder / FILES["model"]).read_bytes()
    (folder / MANIFEST).write_bytes(manifest)
    if cut:
        (folder / FILES["model"]).write_bytes(graph)
    try:
        bundle = read_bundle(folder)
    except BundleError as error:
        assert str(folder) in str(error)
        return "BundleError"
    finally:
        is_replaceable(folder)
        if cut:
            (folder / FILES["model"]).write_bytes(right)
    assert bundle.model_id == model_id(bundle.graphs, bundle.vocabulary, bundle.labels)
    assert bundle.model_id in (BUNDLE.model_id, TAGGER.model_id), "a bundle was accepted that nobody made"
    pb.ModelInfo(name=bundle.name, model_id=bundle.model_id, vocabulary=bundle.vocabulary.symbols)
    assert json.loads(manifest)["states"] == written["states"]
    return "OK"


DEFAULTS = {"max_chars": 10, "temperature": 0.5, "stop": ["x"], "include_stop": False, "seed": 1}
PROMPT = {
    "prompt": "ab", "id": "a-1", "max_chars": 3, "temperature": 0.5, "top_k": 5, "top_p": 0.5, "min_p": 0.25,
    "seed": 7, "stop": ["ab", "c"], "include_stop": True, "logit_bias": {"a": "-inf", "é": 1.5},
}  # fmt: skip


def make_prompts(random):
    lines = []
    for _ in range(random.randint(1, 3)):
        found = {key: value for key, value in PROMPT.items() if key == "prompt" or random.random() < 0.3}
        lines.append(json_bytes(random, mutated_json(random, found) if random.random() < 0.8 else found))
    data = b"\n".join(lines)
    return mutated(random, data, [data]) if random.random() < 0.2 else data


def try_prompts(data):
    """A file is refused as a whole, or its lines are requests that a server refuses for its vocabulary only."""
    path = _file("prompts.jsonl", data)
    try:
        prompts = list(read(path, check(path, DEFAULTS), DEFAULTS, lambda line: True))
    except PromptError as error:
        assert str(path) in str(error)
        return "PromptError"
    for prompt in prompts:
        pb.GenerateRequest.FromString(prompt.request.SerializeToString())
        try:
            _spec(prompt.request)
        except ServeError as error:
            of_the_model = ("not in the model's vocabulary", "every character", "the limit of this", "more than 10000")
            assert any(words in str(error) for words in of_the_model), error
    return "OK"


RUN = Fingerprint("1" * 64, "2" * 64, "3" * 64)
TEXT = {"line": 1, "run": str(RUN), "id": 1, "seed": 7, "text": "abc", "chars": 3, "finish_reason": "LENGTH"}


def make_texts(random):
    found = [{**TEXT, "line": line} for line in random.sample((1, 2, 3), random.randint(1, 3))]
    if random.random() < 0.8:
        found[-1] = mutated_json(random, found[-1])
    data = b"\n".join(json_bytes(random, line) for line in found) + b"\n" * random.randrange(2)
    return mutated(random, data, [data]) if random.random() < 0.3 else data


def try_texts(data):
    """What a run that was killed has left is gone on with, or left as it is."""
    part = _file("texts.jsonl.part", data)
    try:
        with BatchOutput(_FOLDER / "texts.jsonl", Numbering(3), RUN) as texts:
            assert texts.done == sum(not texts.is_wanted(text) for text in range(3))
    except OutputError as error:
        assert str(part) in str(error)
        assert part.read_bytes() == data
        return "OutputError"
    # A file without a text is removed: there is nothing to go on from.
    assert (part.read_bytes() if part.exists() else b"") == data[: len(data) - texts.torn]
    return "OK"


def make_vocabulary(random):
    value = ["a", "b", "é", UNKNOWN, "😀"]
    if random.random() < 0.8:
        value = mutated_json(random, value)
    data = json_bytes(random, value)
    return mutated(random, data, [data]) if random.random() < 0.2 else data


def try_vocabulary(data):
    path = _file("vocabulary.json", data)
    try:
        vocabulary = load_vocabulary_file(path)
    except ForeignError as error:
        assert str(path) in str(error)
        return "ForeignError"
    TextCodec(vocabulary)
    pb.ModelInfo(vocabulary=vocabulary.symbols)
    return "OK"


def _saved_run():
    folder = _FOLDER / "run"
    folder.mkdir()
    model = ModelConfig(hidden=2)
    save_config(folder, RunConfig(model, TrainingConfig(steps=1), Vocabulary(LETTERS)))
    shapes = {"weight_ih_l0": (6, 6), "weight_hh_l0": (6, 2), "bias_ih_l0": (6,), "bias_hh_l0": (6,)}
    weights = {f"rnn.{name}": torch.zeros(shape) for name, shape in shapes.items()}
    weights |= {"linear.weight": torch.zeros(6, 2), "linear.bias": torch.zeros(6)}
    return folder, json.loads((folder / "config.json").read_bytes()), safetensors.torch.save(weights)


RUN_FOLDER, RUN_CONFIG, WEIGHTS = _saved_run()
_HEADER = 8 + struct.unpack("<Q", WEIGHTS[:8])[0]


def make_run_folder(random):
    """config.json or the weights are others than they should be."""
    if random.random() < 0.5:
        config = RUN_CONFIG
        for _ in range(random.choice((0, 1, 2))):
            config = mutated_json(random, config)
        return b"c" + json_bytes(random, config)
    header = json.loads(WEIGHTS[8:_HEADER])
    if random.random() < 0.6:
        words = json_bytes(random, mutated_json(random, header))
        if random.random() < 0.3:
            words = words.replace(b"F32", random.choice((b"F64", b"BF16", b"F8_E4M3", b"F4", b"BOOL", b"XX")))
        data = struct.pack("<Q", len(words)) + words + WEIGHTS[_HEADER:]
    else:
        data = mutated(random, WEIGHTS, [WEIGHTS])
    return b"w" + data


def try_run_folder(data):
    """A run folder is one that can be exported, or it is refused; so are weights that others made."""
    is_config = data[:1] == b"c"
    (RUN_FOLDER / "config.json").write_bytes(data[1:] if is_config else json.dumps(RUN_CONFIG).encode())
    (RUN_FOLDER / "model.safetensors").write_bytes(WEIGHTS if is_config else data[1:])
    answers = []
    try:
        run = load_run(RUN_FOLDER)
        pb.ModelInfo(vocabulary=run.vocabulary.symbols)
        answers.append("OK")
    except RunError as error:
        assert str(RUN_FOLDER) in str(error)
        answers.append("RunError")
    if data[8:10] == b"{":  # what is no safetensors file goes to torch.load, which is slow and does as it likes
        try:
            load_state_dict_file(RUN_FOLDER / "model.safetensors")
        except ForeignError:
            answers.append("ForeignError")
    return ", ".join(answers)


def make_corpus(random):
    if random.random() < 0.5:
        data = text(random, 60).encode()
    else:
        found = [{"symbols": ["a", "b"], "labels": ["x", "y"]}] * random.randint(1, 3)
        data = b"\n".join(json_bytes(random, mutated_json(random, line)) for line in found)
    return mutated(random, data, [data]) if random.random() < 0.5 else data


def try_corpus(data):
    """A text to train on: characters with a vocabulary that is theirs, or an error that names the file."""
    path = _file("corpus.txt", data)
    answers = []
    try:
        words = load_corpus([str(path)])
        assert words == decode(data, "")
        assert "\r" not in words
        for least in (1, 2):
            vocabulary = Vocabulary.of_text(words, least)
            if least == 1:
                assert vocabulary.decode(vocabulary.encode(words)) == words
            assert len(TextCodec(vocabulary).encode(words)) == len(words)
        answers.append("OK")
    except CorpusError as error:
        assert str(path) in str(error)
        answers.append("CorpusError")
    try:
        tagged = load_tagged([str(path)])
        assert all(len(sequence.symbols) == len(sequence.labels) > 0 for sequence in tagged)
        answers.append("tagged")
    except CorpusError as error:
        assert str(path) in str(error)
    return ", ".join(answers)


def make_key(random):
    return random.randbytes(random.choice((0, 1, 31, 32, 32, 33, 64)))


def try_key(data):
    path = _file("key", data)
    try:
        assert read_key(str(path)) == data
    except StartError as error:
        assert len(data) != 32
        assert str(path) in str(error)
        return "StartError"
    assert len(data) == 32
    return "OK"


class Target(NamedTuple):
    """`share` is of all inputs; quick ones get more."""

    make: Callable
    attempt: Callable
    share: float


TARGETS = {
    "generate": Target(make_request(pb.GenerateRequest), try_generate, 0.25),
    "score": Target(make_request(pb.ScoreRequest), try_score, 0.10),
    "interact": Target(make_request(pb.InteractRequest), try_interact, 0.10),
    "token": Target(make_token, try_token, 0.20),
    "codec": Target(make_text, try_codec, 0.10),
    "stops": Target(make_stops, try_stops, 0.10),
    "answers": Target(make_answers, try_answers, 0.05),
    "scores": Target(make_scores, try_scores, 0.05),
    "bundle": Target(make_bundle, try_bundle, 0.015),
    "prompts": Target(make_prompts, try_prompts, 0.015),
    "texts": Target(make_texts, try_texts, 0.01),
    "vocabulary": Target(make_vocabulary, try_vocabulary, 0.01),
    "run": Target(make_run_folder, try_run_folder, 0.01),
    "corpus": Target(make_corpus, try_corpus, 0.01),
    "key": Target(make_key, try_key, 0.005),
}
