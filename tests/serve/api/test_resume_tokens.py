"""Resume tokens alone: round trips, refusal of everything else, rotation of keys, expiry."""

import os
import zlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from servers import run_server

from rill.bundle import Bundle
from rill.sampling import Sampling
from rill.serve.api.constraints import packed, unpacked
from rill.serve.api.resume_tokens import CONSTRAINED_VERSION, MOST_STOPS, VERSION, ResumeTokens, read_key
from rill.serve.constraints.patterns import Pattern
from rill.serve.engine.types import Snapshot, StreamSpec
from rill.serve.errors import OtherModelError, StartError, TokenError
from rill.vocabulary import Vocabulary

PLAIN = Sampling()
KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
NUMERICS = "onnxruntime-1.0-cpu"


def bundle_of(parts=("state_h",), layers=2, hidden=3, model_id="5a" * 32):
    """A bundle whose states and id alone matter."""
    states = tuple((part, (layers, "batch", hidden)) for part in parts)
    return Bundle("some", model_id, {"layers": layers, "hidden": hidden}, "fp32", Vocabulary(("a", "b")), states, {})


BUNDLE = bundle_of()


def spec_of(seed=1, sampling=PLAIN, stops=(), include_stop=False, constraint=b""):
    zero = np.zeros(1, np.int64)
    return StreamSpec(zero, 0, sampling, seed, 0, stops=stops, include_stop=include_stop, constraint=constraint)


def snapshot_of(bundle, position=0, token=0, begun="", seed=0):
    rng = np.random.default_rng(seed)
    shape = (bundle.layers, bundle.hidden)
    state = {name: rng.normal(size=shape).astype(np.float32) for name, _ in bundle.states}
    return Snapshot(position, token, state, begun)


def sealed(tokens, **spec):
    return tokens.seal(BUNDLE, NUMERICS, spec_of(**spec), snapshot_of(BUNDLE))


def float32(least=None, most=None, **options):
    return st.floats(least, most, width=32, allow_nan=False, **options)


samplings = st.builds(
    Sampling,
    temperature=float32(0, allow_infinity=False),
    top_k=st.integers(0, 2**32 - 1),
    top_p=float32(0, 1, exclude_min=True),
    min_p=float32(0, 1),
    logit_bias=st.dictionaries(
        st.integers(0, 2**32 - 1), float32(allow_infinity=False) | st.just(-np.inf), max_size=40
    ),
)
characters = st.characters(exclude_categories=["Cs"])


@st.composite
def stops_and_begun(draw):
    stops = tuple(draw(st.lists(st.text(characters, min_size=1, max_size=70), max_size=MOST_STOPS, unique=True)))
    stop = draw(st.sampled_from(stops)) if stops else ""
    return stops, stop[: draw(st.integers(0, max(len(stop) - 1, 0)))]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    cell=st.sampled_from([("state_h",), ("state_h", "state_c")]),
    layers=st.integers(1, 3),
    hidden=st.integers(1, 5),
    position=st.integers(0, 2**62 - 1),
    last=st.integers(0, 2**32 - 1),
    seed=st.integers(0, 2**64 - 1),
    sampling=samplings,
    texts=stops_and_begun(),
    include_stop=st.booleans(),
    data=st.integers(0, 100),
)
@example(("state_h",), 1, 1, 2**62 - 1, 0, 2**64 - 1, Sampling(), (("\0", "\0\0😀", "é"), "\0\0"), True, 0)
@example(("state_h",), 1, 1, 0, 0, 0, Sampling(), (("x" * 9_999,), "x" * 9_998), False, 0)
@example(("state_h",), 1, 1, 0, 0, 0, Sampling(), (("😀" * 10_000,), "😀" * 9_999), False, 0)
def test_round_trip(cell, layers, hidden, position, last, seed, sampling, texts, include_stop, data):
    bundle = bundle_of(cell, layers, hidden)
    stops, begun = texts
    before = snapshot_of(bundle, position, last, begun, data)
    tokens = ResumeTokens([KEY], 60)
    token = tokens.seal(bundle, NUMERICS, spec_of(seed, sampling, stops, include_stop), before)

    held = tokens.open(token).resumption(bundle, NUMERICS)
    after = held.snapshot
    assert (after.position, after.token, after.partial_stop) == (position, last, begun)
    assert (held.seed, held.sampling, held.stops, held.include_stop) == (seed, sampling, stops, include_stop)
    assert held.same_numerics
    assert after.state.keys() == before.state.keys()
    for name, values in before.state.items():
        assert after.state[name].dtype == np.float32
        np.testing.assert_array_equal(after.state[name], values)

    state_bytes = 4 * layers * hidden * len(cell)
    allowed = state_bytes + 200 + sum(len(stop.encode()) for stop in stops) + 12 * len(sampling.logit_bias)
    assert len(token) <= allowed


terminators = st.none() | st.text(characters, max_size=2)
constraints = (
    st.builds(Pattern, st.sampled_from(["regex", "json_schema"]), st.text(characters), terminators)
    | st.builds(Pattern, st.just("choices"), st.lists(st.text(characters), min_size=1).map(tuple), terminators)
)  # fmt: skip


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    constraint=constraints,
    state=st.integers(0, 2**32 - 1),
    include_stop=st.booleans(),
    texts=stops_and_begun(),
    sampling=samplings,
    are_characters=st.booleans(),
)
@example(Pattern("regex", "é" * 2**13, None), 1, False, ((), ""), Sampling(), True)
@example(Pattern("choices", tuple("a" * 2**16), "\n"), 1, False, ((), ""), Sampling(), False)
def test_a_constraint_and_its_state_are_in_the_token(constraint, state, include_stop, texts, sampling, are_characters):
    bundle = BUNDLE if are_characters else replace(BUNDLE, vocabulary=Vocabulary(("a", "bc"), "longest"))
    stops, begun = texts
    tokens = ResumeTokens([KEY], 60)
    spec = spec_of(1, sampling, stops, include_stop, packed(constraint))
    before = replace(snapshot_of(bundle, 5, 1, begun), automaton_state=state)
    token = tokens.seal(bundle, NUMERICS, spec, before)
    held = tokens.open(token).resumption(bundle, NUMERICS)
    assert (unpacked(held.constraint), held.snapshot.automaton_state) == (constraint, state)
    assert (held.stops, held.include_stop, held.sampling) == (stops, include_stop, sampling)
    assert held.snapshot.partial_stop == begun
    np.testing.assert_array_equal(held.snapshot.state["state_h"], before.state["state_h"])


def test_servers_that_know_no_constraints_can_tell():
    """By the version; all other tokens are as they were."""
    tokens = ResumeTokens([KEY], 0)
    assert sealed(tokens, constraint=packed(Pattern("regex", "a", None)))[0] == CONSTRAINED_VERSION
    assert sealed(tokens)[0] == VERSION


def test_a_large_constraint_is_compressed():
    schema = '{"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}}, "required": ["name"]}'
    token = sealed(ResumeTokens([KEY], 0), constraint=packed(Pattern("json_schema", schema * 600, None)))
    assert len(token) < 2_000


@pytest.mark.parametrize(
    ("damaged", "wrong"),
    [
        (b"", "cannot read"),
        (b"\xff" * 20, "cannot read"),
        (packed(Pattern("regex", "abc", None))[:-1], "cannot read"),
        (packed(Pattern("regex", "abc", None)) + b"x", "cannot read"),
        (zlib.compress(b"", 1, -15), "cannot read"),  # an empty one is never in a token
        (zlib.compress(b"\xff\xff", 1, -15), "cannot read"),
        (zlib.compress(bytes(2**30), 1, -15), "cannot read"),
    ],
)
def test_a_damaged_constraint_is_refused(damaged, wrong):
    with pytest.raises(TokenError, match=wrong):
        unpacked(damaged)


def test_a_token_is_at_most_200_bytes_longer_than_its_content():
    """With the largest number of stops."""
    stops = tuple(f"{number:02}" for number in range(MOST_STOPS))
    token = sealed(ResumeTokens([KEY], 1), stops=stops)
    assert len(token) <= 4 * 2 * 3 + 200 + 2 * MOST_STOPS


def test_texts_in_a_token_are_encrypted():
    token = sealed(ResumeTokens([KEY], 0), stops=("a secret that nobody reads",), seed=0)
    assert b"secret" not in token
    assert token[0] == VERSION


def test_equal_snapshots_have_different_tokens():
    tokens = ResumeTokens([KEY], 0)
    made = {sealed(tokens) for _ in range(100)}
    assert len(made) == 100
    assert len({token[17:] for token in made}) == 100  # not the nonces alone


def refusal(tokens, token):
    with pytest.raises(TokenError) as caught:
        tokens.open(token).resumption(BUNDLE, NUMERICS)
    assert str(caught.value)
    return caught.value.reason


def test_no_damage_goes_unnoticed():
    tokens = ResumeTokens([KEY], 0)
    token = sealed(tokens, stops=("stop",), sampling=Sampling(logit_bias={1: -np.inf}))
    for bit in range(8 * len(token)):
        damaged = bytearray(token)
        damaged[bit // 8] ^= 1 << bit % 8
        assert refusal(tokens, bytes(damaged)) == "INVALID", bit
    for length in range(len(token)):
        assert refusal(tokens, token[:length]) == "INVALID", length
    for more in (b"\0", token[-1:], token):
        assert refusal(tokens, token + more) == "INVALID"


@pytest.mark.parametrize("version", [0, 2, 255])
def test_other_versions_are_refused(version):
    tokens = ResumeTokens([KEY], 0)
    assert refusal(tokens, bytes([version]) + sealed(tokens)[1:]) == "INVALID"


@settings(max_examples=300, deadline=None, derandomize=True)
@given(head=st.integers(0, 40), garbage=st.binary(max_size=400))
@example(0, b"")
@example(1, b"")
@example(5, b"")
@example(17, b"")
@example(17, b"\0" * 16)
@example(33, b"")
def test_garbage_is_refused(head, garbage):
    """Alone, and after the beginning of a valid token."""
    tokens = ResumeTokens([KEY], 0)
    token = sealed(tokens)
    assert refusal(tokens, garbage) == "INVALID"
    if token[head:] != garbage:
        assert refusal(tokens, token[:head] + garbage) == "INVALID"


def test_keys_are_rotated():
    old, both, new = ResumeTokens([KEY], 0), ResumeTokens([OTHER_KEY, KEY], 0), ResumeTokens([OTHER_KEY], 0)
    assert both.open(sealed(old)).resumption(BUNDLE, NUMERICS).seed == 1
    assert new.open(sealed(both)).resumption(BUNDLE, NUMERICS).seed == 1  # the first encrypts
    assert refusal(old, sealed(both)) == "INVALID"
    assert refusal(new, sealed(old)) == "INVALID"  # a key that was removed


def test_tokens_expire(monkeypatch):
    clock = SimpleNamespace(now=1_000.0)
    monkeypatch.setattr("rill.serve.api.resume_tokens.time", SimpleNamespace(time=lambda: clock.now))
    tokens, endless = ResumeTokens([KEY], 10), ResumeTokens([KEY], 0)
    token, always = sealed(tokens), sealed(endless)
    clock.now = 1_009.5
    assert tokens.open(token).resumption(BUNDLE, NUMERICS).seed == 1
    clock.now = 1_010.5
    assert refusal(tokens, token) == "EXPIRED"
    assert refusal(endless, token) == "EXPIRED"  # what counts is what the token says
    clock.now = 1e11
    assert endless.open(always).resumption(BUNDLE, NUMERICS).seed == 1
    assert tokens.open(always).resumption(BUNDLE, NUMERICS).seed == 1


def test_a_damaged_token_is_not_expired(monkeypatch):
    tokens = ResumeTokens([KEY], 10)
    token = sealed(tokens)
    monkeypatch.setattr("rill.serve.api.resume_tokens.time", SimpleNamespace(time=lambda: 1e10))
    assert refusal(tokens, token) == "EXPIRED"
    assert refusal(tokens, token[:-1] + bytes([token[-1] ^ 1])) == "INVALID"


def test_another_model_differs_from_other_numerics():
    tokens = ResumeTokens([KEY], 0)
    token = sealed(tokens)
    with pytest.raises(OtherModelError, match="'some'"):
        tokens.open(token).resumption(bundle_of(model_id="5a" * 15 + "5b" + "5a" * 16), NUMERICS)
    with pytest.raises(OtherModelError):  # of another shape, too
        tokens.open(token).resumption(bundle_of(hidden=4, model_id="00" * 32), NUMERICS)
    assert not tokens.open(token).resumption(BUNDLE, NUMERICS + "x").same_numerics


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_key_files_have_32_bytes(tmp_path, size):
    path = tmp_path / "key"
    path.write_bytes(os.urandom(size))
    with pytest.raises(StartError) as caught:
        read_key(str(path))
    assert str(path) in str(caught.value)
    assert f" {size} bytes" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_key_files_are_files(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(StartError) as caught:
            read_key(str(path))
        assert str(path) in str(caught.value)
    path = tmp_path / "key"
    path.write_bytes(b"\n" * 31 + b" ")  # raw: nothing is stripped
    assert read_key(str(path)) == b"\n" * 31 + b" "


def test_a_server_does_not_start_with_a_wrong_key_file(tmp_path, tiny_folder, run_command):
    right, short = tmp_path / "right", tmp_path / "short"
    right.write_bytes(KEY)
    short.write_bytes(KEY[:31])
    for wrong in (short, tmp_path / "missing"):
        done = run_command("rill.serve", tiny_folder, "--resume-key-file", right, "--resume-key-file", wrong)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: --resume-key-file {wrong}")


def test_a_server_without_a_key_file_logs_it(tmp_path, tiny_folder):
    (tmp_path / "key").write_bytes(KEY)
    for arguments, says in (([], True), (["--resume-key-file", tmp_path / "key"], False)):
        with run_server(tiny_folder, *arguments) as running:
            _, log = running.stop()
        assert ("no --resume-key-file" in log) is says


@pytest.mark.parametrize("seconds", ["1e20", "-1", "nan", "inf", "soon"])
def test_an_invalid_time_to_live_is_refused(tiny_folder, run_command, seconds):
    done = run_command("rill.serve", tiny_folder, f"--resume-ttl={seconds}")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--resume-ttl" in done.stderr.splitlines()[-1]
