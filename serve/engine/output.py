"""The output of a round: where a text ends, which text is held back, and the snapshots that are due.

At the end of a round the state of every row is at hand. A state in the middle of it, where a stop was found or begins,
is replayed (`rill.serve.engine.replay`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rill.serve.engine.automata import ENDED, GOES_ON, Automata
from rill.serve.engine.decoder import Decoder
from rill.serve.engine.replay import replay
from rill.serve.engine.rows import CONSTRAINED_LOGPROBS, LOGPROBS, Round, Rows
from rill.serve.engine.states import Batch, States, row_of
from rill.serve.engine.stops import StopTracker
from rill.serve.engine.text_codec import Ids, TextCodec
from rill.serve.engine.types import FinishReason, Logprobs, Piece, Snapshot, State, StreamSpec

Arrays = Mapping[str, NDArray[Any]]


@dataclass
class RoundOutput:
    """The output of `round`, by its columns; `texts` are those that differ from the generated characters.

    The rows in `ended` have chosen an end symbol, or a terminator of their constraint: their steps are those before it.
    The text of those in `stopped` ends before that, with a stop.
    """

    round: Round
    ended: frozenset[int] = frozenset()
    stopped: set[int] = field(default_factory=set)
    finished: dict[int, FinishReason] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    snapshots: dict[int, Snapshot] = field(default_factory=dict)


class OutputProcessor:
    """Collects the output of rounds; used by the engine's thread only."""

    def __init__(self, decoder: Decoder, codec: TextCodec, rows: Rows, states: States, automata: Automata) -> None:
        self._decoder, self._codec, self._rows, self._states = decoder, codec, rows, states
        self._automata = automata
        self._trackers: dict[int, StopTracker] = {}  # of streams with stops, by slot

    def enter(self, slot: int, spec: StreamSpec) -> None:
        """Begin a stream in `slot`."""
        if spec.stops:
            self._trackers[slot] = StopTracker(spec)

    def leave(self, slot: int) -> None:
        """Forget the stream in `slot`."""
        self._trackers.pop(slot, None)

    def snapshot(self, slot: int) -> Snapshot | None:
        """The snapshot of a stream between rounds, after its released text; None if its prompt is not read yet."""
        if self._rows.table["prompt_left"][slot]:
            return None
        tracker = self._trackers.get(slot)
        if tracker and tracker.held_back:
            return replay(self._decoder, [tracker.replay_point()])[0]
        return self._snapshot_at_end(slot, self._states.row(slot))

    def is_over(self, slot: int) -> bool:
        """Whether the constraint of a stream, which has no prompt left to read, allows no more characters."""
        return self._rows.is_constrained(slot) and bool(self._ends_at(self._rows.table["automaton"][slot]))

    def collect(self, r: Round, feeds: Arrays, before: Batch, results: Arrays, after: Batch) -> RoundOutput:
        """Take over a round that turned the inputs `feeds` and the states `before` into the outputs `results`."""
        tokens = results["tokens"]
        if r.is_constrained:
            output = self._until_complete(r, results["automata"])
        else:
            output = self._until_ends(r, tokens) if self._codec.end_ids.size else RoundOutput(r)
        r = output.round
        readers = self._rows.reading.intersection(r.slots.tolist()) if self._rows.reading else set()
        reached = self._rows.advance(r, tokens).tolist()
        if r.is_constrained:
            self._rows.follow(r, results["automata"])
        if output.ended:
            self._rows.table["token"][r.slots[r.steps == 0]] = feeds["token"][: len(r.slots)][r.steps == 0]
        if readers:
            self._end_after_prompts(r, readers, output)
        tracked = self._find_stops(r, feeds, before, tokens, output) if self._trackers else {}
        if r.is_constrained and output.ended:
            self._rows.end_automata(r.slots[sorted(output.ended - output.stopped)])
        due = {column for column, tracker in tracked.items() if tracker.position >= tracker.snapshot_due}
        wanted = []
        for column in {*reached, *due, *output.finished}:
            slot = int(r.slots[column])
            if column not in output.finished and self._rows.is_complete(slot):
                output.finished[column] = FinishReason.LENGTH
            if column not in output.finished:
                self._rows.plan_snapshot(slot)
                if output.texts.get(column) == "":  # no message is sent for a snapshot alone
                    continue
            if self._rows.needs_last_snapshot(slot):
                wanted.append(column)
        self._take_snapshots(r, after, tracked, wanted, output)
        return output

    def _until_ends(self, r: Round, tokens: Ids) -> RoundOutput:
        """Find the rows whose text ends in a round. The graph has left their states where they were before the end."""
        ends = self._codec.end_ids
        found = tokens == ends[0] if len(ends) == 1 else np.isin(tokens, ends)
        found &= np.arange(len(tokens))[:, None] < r.steps
        columns = np.flatnonzero(found.any(axis=0))
        if not columns.size:
            return RoundOutput(r)
        steps = r.steps.copy()
        steps[columns] = found[:, columns].argmax(axis=0)
        finished = dict.fromkeys(columns.tolist(), FinishReason.STOP)
        effective = replace(r, steps=steps, prompted=np.minimum(r.prompted, steps))
        return RoundOutput(effective, frozenset(finished), finished=finished)

    def _until_complete(self, r: Round, automata: Ids) -> RoundOutput:
        """Find the rows whose text their constraint ends in a round: with its last symbol, or before a terminator."""
        ends = self._ends_at(automata)
        ends[np.arange(len(ends))[:, None] >= r.steps] = GOES_ON
        columns = np.flatnonzero(ends.any(axis=0))
        if not columns.size:
            return RoundOutput(r)
        first = (ends[:, columns] != GOES_ON).argmax(axis=0)
        is_ended = ends[first, columns] == ENDED
        steps = r.steps.copy()
        steps[columns] = first + ~is_ended
        finished = dict.fromkeys(columns.tolist(), FinishReason.STOP)
        return RoundOutput(replace(r, steps=steps), frozenset(columns[is_ended].tolist()), finished=finished)

    def _end_after_prompts(self, r: Round, readers: set[int], output: RoundOutput) -> None:
        """End the constrained streams in the slots `readers` that have read their prompt and may choose nothing."""
        for column, slot in enumerate(r.slots.tolist()):
            if slot in readers and slot not in self._rows.reading and self.is_over(slot):
                output.finished[column] = FinishReason.STOP

    def _ends_at(self, rows: Any) -> Any:
        """How a text goes on at `rows` of the tables, int8: GOES_ON, COMPLETE or ENDED."""
        return self._automata.tables.ends[rows]

    def _find_stops(
        self, r: Round, feeds: Arrays, before: Batch, tokens: Ids, output: RoundOutput
    ) -> dict[int, StopTracker]:
        """Find the stops in a round; return the trackers of its rows, by column."""
        host = cache(lambda: {name: value.numpy() for name, value in before.items()})

        def entry(column: int, position: int) -> Snapshot:
            row = int(feeds["automaton"][column]) if r.is_constrained else None
            state = self._rows.automaton_state(slots[column], row)
            return Snapshot(position, int(feeds["token"][column]), row_of(host(), column), automaton_state=state)

        slots = r.slots.tolist()
        tracked = {column: self._trackers[slot] for column, slot in enumerate(slots) if slot in self._trackers}
        columns = list(tracked)
        texts = self._codec.decode(tokens[:, columns], r.prompted[columns], r.steps[columns])
        for (column, tracker), new in zip(tracked.items(), texts, strict=True):
            output.texts[column], stopped = tracker.update(
                new,
                tokens[: r.steps[column], column],
                self._rows.is_complete(slots[column]) or column in output.finished,
                partial(entry, column, tracker.position + tracker.held_back),
            )
            if stopped:
                output.stopped.add(column)
                output.finished[column] = FinishReason.STOP
        return tracked

    def _take_snapshots(
        self, r: Round, after: Batch, tracked: Mapping[int, StopTracker], wanted: Sequence[int], output: RoundOutput
    ) -> None:
        """Take the `wanted` snapshots, by column, and replay a stream before it has too much to be replayed at once."""
        held = {column for column in wanted if column in tracked and tracked[column].held_back}
        if len(held) < len(wanted):
            host = {name: value.numpy() for name, value in after.items()}
            for column in set(wanted) - held:
                output.snapshots[column] = self._snapshot_at_end(int(r.slots[column]), row_of(host, column))
        points = {
            column: tracker.replay_point()
            for column, tracker in tracked.items()
            if column in held or tracker.is_far_from_base
        }
        for column, snapshot in zip(points, replay(self._decoder, list(points.values())), strict=True):
            tracked[column].rebase(snapshot)
            if column in held:
                output.snapshots[column] = snapshot
        for column in tracked.keys() & output.snapshots.keys():
            tracked[column].snapshot_taken()

    def _snapshot_at_end(self, slot: int, state: State) -> Snapshot:
        """The snapshot after the generated text, all of which is released."""
        row, tracker = self._rows.table[slot], self._trackers.get(slot)
        partial_stop = tracker.partial_stop if tracker else ""
        automaton_state = self._rows.automaton_state(slot)
        return Snapshot(int(row["generated"]), int(row["token"]), state, partial_stop, automaton_state=automaton_state)


def pieces(codec: TextCodec, results: Mapping[str, NDArray[Any]], output: RoundOutput) -> list[Piece]:
    """The piece of each row of a round; `results` are the outputs of the serving graph, [time, rows, ...] each."""
    r = output.round
    texts = codec.decode(results["tokens"], r.prompted, r.steps)
    if r.kind not in (LOGPROBS, CONSTRAINED_LOGPROBS):
        return [Piece(output.texts.get(at, text), output.snapshots.get(at)) for at, text in enumerate(texts)]
    names = ("logprobs", "top_tokens", "top_logprobs")
    return [
        Piece(
            output.texts.get(at, text),
            output.snapshots.get(at),
            Logprobs(*(results[name][r.prompted[at] : r.steps[at] + (at in output.ended), at] for name in names)),
        )
        for at, text in enumerate(texts)
    ]
