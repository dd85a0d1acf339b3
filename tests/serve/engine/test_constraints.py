"""Constrained streams of a model: the text of each is that of the reference, whatever happens around it."""

import asyncio
import functools
from dataclasses import replace

import numpy as np
import pytest
from automata import random_automaton, repetition, sequence
from constrained_texts import constrained_ids
from live_streams import live_stream
from random_models import MOLECULES, make_run

from rill.export.graphs.build import build_bundle
from rill.sampling import Sampling
from rill.serve.engine.decoder import NO_TABLES, Decoder
from rill.serve.engine.devices import CPU
from rill.serve.engine.text_codec import GivenText
from rill.serve.engine.types import FinishReason, StreamSpec
from rill.serve.errors import EngineError, RequestError
from rill.serve.models.model import Model

LENGTH, STOP, PAUSED, DRAINING = FinishReason.LENGTH, FinishReason.STOP, FinishReason.PAUSED, FinishReason.DRAINING
MANY = 40  # streams


class RecordingDecoder(Decoder):
    """A decoder that records the graphs and rows of its rounds, and fails once when `fail` is set."""

    rounds, fail = (), False

    def run(self, variant, feeds, states, tables=NO_TABLES):
        if self.fail:
            self.fail = False
            raise RuntimeError("out of memory")
        self.rounds = (*self.rounds, (variant, len(feeds["token"])))
        return super().run(variant, feeds, states, tables)


@pytest.fixture(scope="module")
def reference(tiny):
    """The reference's text, the automaton's state after it, and why it ends, of a spec."""
    decoder = Decoder(tiny, CPU)

    @functools.cache
    def of(key):
        count, spec = key[0], specs[key]
        ids, state, is_complete = constrained_ids(decoder, tiny, spec, count)
        return tiny.vocabulary.decode(ids), state, STOP if is_complete else LENGTH

    specs = {}

    def text_of(spec):
        key = (spec.max_chars, id(spec))
        specs[key] = spec  # kept: the key is its id
        return of(key)

    return text_of


@pytest.fixture
async def model(tiny):
    made = Model(tiny, RecordingDecoder(tiny, CPU), 300, 2000, 0.010)
    made.decoder = made.engine._decoder
    made.decoder.rounds = ()  # without those of the warm-up
    yield made
    made.engine.stop()
    assert made.slots.running == 0
    assert not made.automata._used_rows


def spec(automaton, count=200, seed=0, prompt=(1,), logprobs=None, **sampling):
    ids = np.array(prompt)
    return StreamSpec(ids, len(ids), Sampling(**sampling), seed, count, automaton=automaton, logprobs=logprobs)


async def pieces_of(model, wanted):
    """All pieces of a stream, and why it ended."""
    pieces, end = [], None
    if wanted.is_constrained:
        await model.automata.acquire(wanted.automaton)
    try:
        async with live_stream(model, wanted) as stream:
            while end is None:
                piece, end = await stream.next_piece()
                model.mark_sent(stream, piece.text)
                pieces.append(piece)
    finally:
        if wanted.is_constrained:
            model.automata.release(wanted.automaton)
    await until_gone(model, wanted)
    return pieces, end


async def until_gone(model, wanted):
    while any(stream.spec is wanted for stream in model._live.values()):
        await asyncio.sleep(0)


async def text_of(model, wanted):
    """The text of a stream, its last snapshot, and why it ended."""
    pieces, end = await pieces_of(model, wanted)
    return "".join(piece.text for piece in pieces), pieces[-1].snapshot, end


def resumed(wanted, snapshot, **changes):
    """What follows after a snapshot."""
    done = snapshot.position - wanted.position
    return replace(
        wanted,
        prompt=np.array([snapshot.token]),
        position=snapshot.position,
        state=snapshot.state,
        partial_stop=snapshot.partial_stop,
        automaton_state=snapshot.automaton_state,
        max_chars=wanted.max_chars - done,
        **changes,
    )


def equal(one, other):
    return (
        (one.position, one.token, one.automaton_state) == (other.position, other.token, other.automaton_state)
        and one.state.keys() == other.state.keys()
        and all((one.state[name] == other.state[name]).all() for name in one.state)
    )


def crowd(vocabulary, count=MANY):
    """Streams of all kinds, most of them constrained, each by another automaton."""
    symbols, line_end = len(vocabulary), vocabulary.id_of("\n")
    wanted = []
    for seed in range(count):
        automaton = random_automaton(symbols, 2 + 5 * seed % 150, seed, terminator=line_end if seed % 3 else None)
        sampling = (
            {},
            {"temperature": 0.0},
            {"top_p": 0.9, "temperature": 1.3},
            {"top_k": 5},
            {"logit_bias": dict.fromkeys(range(7), -1.5)},
            {},
        )[seed % 6]
        wanted.append(
            spec(
                None if seed % 7 == 3 else automaton,
                count=40 + seed,
                seed=seed,
                prompt=[1 + step % 50 for step in range(1 + seed % 4 * 9)],
                logprobs=3 if seed % 5 == 1 else None,
                **sampling,
            )
        )
    return wanted


async def test_streams_of_different_patterns_share_rounds_and_have_the_text_of_the_reference(model, reference, tiny):
    wanted = crowd(tiny.vocabulary)
    got = await asyncio.gather(*(text_of(model, each) for each in wanted))
    for each, (text, snapshot, end) in zip(wanted, got, strict=True):
        if each.automaton:
            assert (text, snapshot.automaton_state, end) == reference(each)
    assert {STOP, LENGTH} <= {end for _, _, end in got}
    rows = [rows for variant, rows in model.decoder.rounds if variant == "decode_constrained"]
    assert max(rows) >= 3
    alone = [await text_of(model, each) for each in wanted]
    for (text, snapshot, end), (text_alone, snapshot_alone, end_alone) in zip(got, alone, strict=True):
        assert (text, end) == (text_alone, end_alone)
        assert equal(snapshot, snapshot_alone)


async def test_fixed_batch_sizes_change_no_text(tiny, model):
    """As on a GPU: rows that take no step fill up every round."""
    padded = Model(tiny, RecordingDecoder(tiny, CPU, batch_sizes=(4, 16)), 40, 40, 0.010)
    wanted = crowd(tiny.vocabulary, 20)
    try:
        got = await asyncio.gather(*(text_of(padded, each) for each in wanted))
    finally:
        padded.engine.stop()
    assert {rows for _, rows in padded.engine._decoder.rounds} <= {4, 16, 32}
    for each, (text, snapshot, end) in zip(wanted, got, strict=True):
        text_alone, snapshot_alone, end_alone = await text_of(model, each)
        assert (text, end) == (text_alone, end_alone)
        assert equal(snapshot, snapshot_alone)


@pytest.mark.parametrize("stops", [(), ("ab", "ba"), ("abcabcabc",)])
async def test_a_text_cut_at_every_position_goes_on_as_if_it_was_not(model, tiny, stops):
    """The ends of its parts are those of the limit; the last one ends as the whole does."""
    wanted = replace(
        spec(repetition(tiny.vocabulary, "abc", least=20), count=60, seed=2, temperature=1.2),
        stops=stops,
        include_stop=True,
    )
    whole, last, end = await text_of(model, wanted)
    assert len(whole) >= 2
    for cut in range(1, len(whole) + 1):
        part, snapshot, first_end = await text_of(model, replace(wanted, max_chars=cut))
        assert part == whole[:cut]
        rest, again, second_end = await text_of(model, resumed(wanted, snapshot)) if cut < 60 else ("", last, end)
        if first_end is LENGTH:
            assert (part + rest, second_end) == (whole, end)
            assert equal(again, last)


async def test_snapshots_on_the_way_are_those_of_the_positions(model, tiny):
    automaton = random_automaton(len(tiny.vocabulary), 40, 7)
    # Paced, so that the reader keeps up: a snapshot replaces one that was not taken.
    wanted = replace(spec(automaton, count=90, seed=4), resume_every=7, chars_per_second=200.0)
    pieces, _ = await pieces_of(model, wanted)
    whole = "".join(piece.text for piece in pieces)
    ids = tiny.vocabulary.encode(whole)
    snapshots = [piece.snapshot for piece in pieces if piece.snapshot]
    assert len(snapshots) >= 2
    for snapshot in snapshots:
        assert snapshot.automaton_state == automaton.after(0, ids[: snapshot.position])
        rest, _, _ = await text_of(model, resumed(wanted, snapshot))
        assert whole[: snapshot.position] + rest == whole


async def test_a_terminator_is_neither_shown_nor_in_the_state(model, tiny, reference):
    """The text goes on after it as if the constraint had been removed there."""
    wanted = spec(repetition(tiny.vocabulary, "xyz", least=3), seed=1)
    text, snapshot, end = await text_of(model, wanted)
    assert end is STOP
    assert set(text) <= set("xyz")
    assert (text, snapshot.automaton_state, end) == reference(wanted)
    assert snapshot.automaton_state == wanted.automaton.ended
    assert snapshot.position == len(text)
    assert snapshot.token == tiny.vocabulary.encode(text)[-1]
    exact, at_end, limit = await text_of(model, replace(wanted, max_chars=len(text)))
    assert (exact, limit) == (text, LENGTH)
    assert at_end.automaton_state != wanted.automaton.ended
    assert all((at_end.state[name] == snapshot.state[name]).all() for name in snapshot.state)


async def test_logprobs_are_the_models_and_the_terminator_has_its_own(model, tiny):
    wanted = spec(repetition(tiny.vocabulary, "xyz", least=3), seed=1, logprobs=2)
    async with model_stream(model, wanted) as stream:
        text, chosen = "", []
        end = None
        while end is None:
            piece, end = await stream.next_piece()
            model.mark_sent(stream, piece.text)
            text += piece.text
            if piece.logprobs:
                chosen += piece.logprobs.chosen.tolist()
        terminator = stream.end_logprobs()
    assert len(chosen) == len(text)
    plain = replace(
        wanted,
        automaton=None,
        given=GivenText(text + "\n", model.codec),
        max_chars=len(text) + 1,
        prompt=wanted.prompt,
    )
    pieces, _ = await pieces_of(model, plain)
    expected = np.concatenate([piece.logprobs.chosen for piece in pieces if piece.logprobs])
    assert np.array_equal([*chosen, terminator.chosen[0]], expected)


class model_stream:  # used as a function
    """A live stream of a model, with its automaton in the tables."""

    def __init__(self, model, wanted):
        self._model, self._wanted, self._live = model, wanted, live_stream(model, wanted)

    async def __aenter__(self):
        await self._model.automata.acquire(self._wanted.automaton)
        try:
            return await self._live.__aenter__()
        finally:
            self._model.automata.release(self._wanted.automaton)

    async def __aexit__(self, *error):
        await self._live.__aexit__(*error)
        await until_gone(self._model, self._wanted)


async def test_filters_without_logprobs_keep_none(model, tiny):
    """They share the graph, and must not collect what nobody takes."""
    wanted = spec(random_automaton(len(tiny.vocabulary), 30, 1), seed=3, top_p=0.9)
    async with model_stream(model, wanted) as stream:
        end = None
        while end is None:
            piece, end = await stream.next_piece()
            model.mark_sent(stream, piece.text)
            assert piece.logprobs is None
        assert not stream._logprobs


async def test_a_stop_in_the_round_of_the_terminator_comes_first(model, tiny):
    """The token of the text is the same as if the round had ended right after the stop."""
    wanted = spec(repetition(tiny.vocabulary, "xyz", least=3), seed=1)
    text, _, _ = await text_of(model, wanted)
    for include in (True, False):
        stopping = replace(wanted, stops=(text[-2:],), include_stop=include)
        got, snapshot, end = await text_of(model, stopping)
        at = text.index(text[-2:])
        assert (got, end) == (text[: at + 2] if include else text[:at], STOP)
        ids = tiny.vocabulary.encode(got)
        assert snapshot.automaton_state == wanted.automaton.after(0, ids) != wanted.automaton.ended
        rest, _, _ = await text_of(model, resumed(wanted, replace(snapshot, partial_stop="")))
        assert got + rest == text


async def test_text_that_is_held_back_is_released_where_the_constraint_ends_it(model, tiny):
    letters = sequence(tiny.vocabulary, "x", "y", "z")
    text, snapshot, end = await text_of(model, replace(spec(letters), stops=("yzyz",)))
    assert (text, end, snapshot.automaton_state, snapshot.partial_stop) == ("xyz", STOP, 3, "yz")
    lines = repetition(tiny.vocabulary, "x", least=2)
    wanted = replace(spec(lines, seed=5, logit_bias={tiny.vocabulary.id_of("\n"): 30.0}), stops=("xxx",))
    text, snapshot, end = await text_of(model, wanted)
    assert (text, end, snapshot.automaton_state) == ("xx", STOP, lines.ended)


async def test_pauses_and_drains_end_a_stream_where_it_is(model, tiny):
    automaton = random_automaton(len(tiny.vocabulary), 120, 3)
    wanted = spec(automaton, count=5000, seed=1)
    whole, _, end = await text_of(model, wanted)
    got, state, rest = "", wanted, None
    while rest is not end:
        async with model_stream(model, state) as stream:
            piece, rest = await stream.next_piece()
            model.mark_sent(stream, piece.text)
            got += piece.text
            model.engine.finish(stream, PAUSED)
            while rest is None:
                piece, rest = await stream.next_piece()
                model.mark_sent(stream, piece.text)
                got += piece.text
        state = resumed(wanted, piece.snapshot)
    assert got == whole


@pytest.mark.parametrize("prompt", [(1,), (3, 4, 5), tuple(range(1, 50))])
async def test_a_text_that_is_complete_already_ends_at_once(model, tiny, prompt):
    """What the model is to read before is read: the state is that after it."""
    automaton = sequence(tiny.vocabulary, "x", "y")
    for state in (2, automaton.ended):
        text, snapshot, end = await text_of(model, replace(spec(automaton, prompt=prompt), automaton_state=state))
        assert (text, end, snapshot.position, snapshot.automaton_state) == ("", STOP, 0, state)
        _, read, _ = await text_of(model, replace(spec(automaton, prompt=prompt), automaton_state=1))
        assert snapshot.token == prompt[-1]
        if len(prompt) > 1:
            assert any(values.any() for values in snapshot.state.values())
        plain = replace(spec(None, prompt=prompt, count=9))
        expected, _, _ = await text_of(model, plain)
        after = replace(plain, prompt=np.array([snapshot.token]), state=snapshot.state)
        assert (await text_of(model, after))[0] == expected
        assert read.position == 1


async def test_prompts_are_read_by_plain_rounds_with_others(model, tiny):
    """A crowd of plain streams and newcomers with long prompts: constrained graphs never read."""
    automata = [random_automaton(len(tiny.vocabulary), 20, seed) for seed in range(10)]
    wanted = [spec(each, prompt=[1 + step % 50 for step in range(400)], seed=9) for each in automata]
    wanted += [spec(None, count=2000, seed=seed) for seed in range(10)]
    got = await asyncio.gather(*(text_of(model, each) for each in wanted))
    alone = [await text_of(model, each) for each in wanted]
    assert [text for text, *_ in got] == [text for text, *_ in alone]


async def test_what_is_given_does_not_move_the_automaton(model, tiny):
    """As the feeds of Interact."""
    automaton = sequence(tiny.vocabulary, "x", "y", "z")
    given = GivenText("hello", model.codec)
    wanted = replace(spec(automaton, count=5, logprobs=0), given=given, automaton_state=1)
    text, snapshot, end = await text_of(model, wanted)
    assert (text, end, snapshot.automaton_state) == ("hello", LENGTH, 1)


async def test_paced_and_unread_streams_wait_and_go_on(model, tiny):
    automaton = repetition(tiny.vocabulary, "abc", terminator="")
    paced = replace(spec(automaton, count=8, seed=1), chars_per_second=400.0)
    unread = spec(automaton, count=0, seed=2)
    model.engine._rows._buffer = 300
    async with model_stream(model, unread) as stream:
        text, _, end = await text_of(model, paced)
        assert (len(text), end) == (8, LENGTH)
        while not model.parked:
            await asyncio.sleep(0.01)
        got = ""
        while len(got) < 1000:
            piece, _ = await stream.next_piece()
            model.mark_sent(stream, piece.text)
            got += piece.text
        assert set(got) == set("abc")


async def test_a_failing_round_leaves_a_snapshot_with_the_automaton(model, tiny):
    automaton = repetition(tiny.vocabulary, "abc", terminator="")
    wanted = spec(automaton, count=3000, seed=1)
    whole, _, _ = await text_of(model, wanted)
    pieces = []

    async def read():
        async with model_stream(model, wanted) as stream:
            while True:
                piece, _ = await stream.next_piece()
                model.mark_sent(stream, piece.text)
                pieces.append(piece)
                model.decoder.fail = len(pieces) > 1 and not piece.snapshot

    with pytest.raises(EngineError, match="out of memory"):
        await read()
    got, snapshot = "".join(piece.text for piece in pieces), pieces[-1].snapshot
    assert got == whole[: len(got)]
    rest, _, _ = await text_of(model, resumed(wanted, snapshot))
    assert got + rest == whole
    await asyncio.sleep(0)


async def test_streams_wait_for_room_in_the_tables(model, tiny):
    """More automata than fit at once: each has its turn, and a stream that leaves makes room."""
    row_bytes = 12 * len(tiny.vocabulary) + 6
    model.automata.__init__(tiny.vocabulary, 150 * row_bytes, 0)  # for three of 40 states
    wanted = [spec(random_automaton(len(tiny.vocabulary), 40, seed), count=50, seed=seed) for seed in range(12)]
    got = await asyncio.gather(*(text_of(model, each) for each in wanted))
    alone = [await text_of(model, each) for each in wanted]
    assert [text for text, *_ in got] == [text for text, *_ in alone]
    with pytest.raises(RequestError, match="200 states, too many for this model"):
        await text_of(model, spec(random_automaton(len(tiny.vocabulary), 200, 1)))
    endless = spec(repetition(tiny.vocabulary, "ab", least=140, terminator=""), count=0)
    async with model_stream(model, endless):
        later = asyncio.create_task(text_of(model, wanted[0]))
        while not model.automata.waiting:
            await asyncio.sleep(0)
    assert (await later)[0] == got[0][0]


async def test_the_tables_grow_while_streams_run(model, tiny):
    endless = spec(repetition(tiny.vocabulary, "ab", terminator=""), count=0, seed=3)
    async with model_stream(model, endless) as stream:
        got = ""
        for seed in range(12):
            await text_of(model, spec(random_automaton(len(tiny.vocabulary), 150, seed), count=5))
            piece, _ = await stream.next_piece()
            model.mark_sent(stream, piece.text)
            got += piece.text
        assert len(model.automata.tables) > 1000
    expected, _, _ = await text_of(model, replace(endless, max_chars=len(got)))
    assert got == expected


async def test_an_older_bundle_has_no_constraints_and_goes_on_working(tiny):
    older = replace(tiny, constrained={})
    made = Model(older, Decoder(older, CPU), 4, 4, 0.010)
    try:
        assert not made.supports_constraints
        assert len((await text_of(made, spec(None, count=10)))[0]) == 10
    finally:
        made.engine.stop()


async def test_ngram_models_and_end_symbols_have_the_context_of_the_text():
    """The state after a terminator, and after a model's own end symbol as one, is that of the text before it."""
    run = make_run(MOLECULES, ngrams=3)
    bundle = build_bundle(run, "molecules")
    decoder, vocabulary = Decoder(bundle, CPU), bundle.vocabulary
    made = Model(bundle, RecordingDecoder(bundle, CPU), 30, 30, 0.010)
    never, (end_symbol,) = vocabulary.never_ids, vocabulary.end_ids
    wanted = [
        spec(random_automaton(len(vocabulary), 20, seed, end_symbol, never), seed=seed, prompt=[0, 3, 5])
        for seed in range(20)
    ]
    try:
        got = await asyncio.gather(*(text_of(made, each) for each in wanted))
        pairs = list(zip(wanted, got, strict=True))
        for each, (text, snapshot, end) in pairs:
            ids, state, is_complete = constrained_ids(decoder, bundle, each, each.max_chars)
            assert made.codec.encode(text).tolist() == ids
            assert (snapshot.automaton_state, end) == (state, STOP if is_complete else LENGTH)
            assert snapshot.state["context"].tolist() == [0, 3, 5, *ids][-3:-1]
        assert any(snapshot.automaton_state == each.automaton.ended for each, (_, snapshot, _) in pairs)
    finally:
        made.engine.stop()


async def test_a_stream_that_is_cancelled_leaves_the_tables_when_it_has_left_the_engine(model, tiny):
    automaton = repetition(tiny.vocabulary, "ab", terminator="")
    wanted = spec(automaton, count=0)
    await model.automata.acquire(automaton)
    async with live_stream(model, wanted) as stream:
        await stream.next_piece()
        model.automata.release(automaton)
        assert model.automata._used_rows == automaton.states + 1
    await until_gone(model, wanted)
    assert not model.automata._used_rows
