"""Comparison of the serving graphs for texts that must match, with random automata.

A step of theirs must choose as PyTorch does from the allowed symbols, and have the states and the log-probabilities of
the plain graph bit by bit; a call must do what as many calls of one step do, each with the automata followed here.
"""

from dataclasses import replace

import numpy as np
import torch

from rill.export.errors import ParityError
from rill.export.parity.choices import Graph, count_excused, random_sampling, set_parameters
from rill.export.parity.compare import Array, Named, decode_feeds, random_states, random_text
from rill.export.parity.reference import next_states
from rill.sampling import Sampling
from rill.vocabulary import Vocabulary

ROWS = 128
STEPS = 6
STATES = 40


def random_tables(
    vocabulary: Vocabulary, rng: np.random.Generator, states: int = STATES, ends: float = 0.1, terminated: float = 0.3
) -> Named:
    """The tables of random automata, as inputs of a graph.

    Row 0 allows every symbol and leads to itself. Of the following `states` rows a share `ends` ends texts, and a share
    `terminated` of the others has a terminator, which leads to the last row.
    """
    symbols, rows = len(vocabulary), states + 2
    never = list(vocabulary.never_ids)
    possible = np.setdiff1d(np.arange(symbols), [*never, *vocabulary.end_ids])
    final = np.append(rng.random(rows - 1) < ends, True)
    final[0] = False
    allowed = np.zeros((rows, symbols), np.float32)
    transitions = np.repeat(np.arange(rows)[:, None], symbols, axis=1)
    for state in np.flatnonzero(~final)[1:].tolist():
        follows = rng.permutation(possible)[: rng.integers(1, len(possible) + 1)]
        allowed[state] = -np.inf
        allowed[state, follows] = 0
        transitions[state, follows] = rng.integers(1, states + 1, size=len(follows))
        if rng.random() < terminated:
            transitions[state, follows[0]] = rows - 1
    allowed[0, never] = -np.inf
    return {
        "allowed": allowed,
        "transitions": transitions.ravel(),
        "continues": (~final)[:, None].astype(np.float32),
        "reads": (np.arange(rows) < rows - 1)[:, None],
    }


def constrained(graph: Graph, plain: Graph, rng: np.random.Generator) -> int:
    """Compare `graph` with the reference and with `plain`, the graph that has the same filters.

    Returns the number of excused choices, of ROWS. Raises ParityError.
    """
    excused = _one_step(graph, plain, rng)
    _many_steps(graph, rng)
    return excused


def _one_step(graph: Graph, plain: Graph, rng: np.random.Generator) -> int:
    """Compare one step of ROWS rows, none of which ends its text."""
    vocabulary = graph.bundle.vocabulary
    tables = random_tables(vocabulary, rng, ends=0, terminated=0)
    states, automaton = random_states(graph.bundle, ROWS, rng), rng.integers(1, STATES + 1, size=ROWS)
    token, u = random_text(graph.bundle, (ROWS,), rng), rng.random((1, ROWS), np.float32)
    allowed = tables["allowed"][automaton]
    rows = [_leaving_one(random_sampling(vocabulary, graph.inputs, rng), each) for each in allowed]
    feeds = decode_feeds(graph.session, token, states, u, Sampling()) | tables | {"automaton": automaton}
    bias = set_parameters(feeds, rows, len(vocabulary))
    got = graph.run(feeds)
    if (got["automata"][0] != _next(tables, automaton, got["tokens"][0])).any():
        raise ParityError(f"{graph.name}: the automata are in other states than their tables say")
    of_plain = decode_feeds(plain.session, token, states, u, Sampling())
    set_parameters(of_plain, rows, len(vocabulary))
    expected = plain.run(of_plain | {"forced": got["tokens"]})
    logits = plain.logits(token, states, expected)
    for name, values in expected.items():
        if got[name].tobytes() != values.tobytes():
            raise ParityError(f"{graph.name}: {name} differs from that of {plain.name}")
    return count_excused(graph, got["tokens"][0], torch.from_numpy(logits + bias + allowed), u[0], rows)


def _many_steps(graph: Graph, rng: np.random.Generator) -> None:
    """Compare a call with calls of one step."""
    tables = random_tables(graph.bundle.vocabulary, rng)
    states, automaton = random_states(graph.bundle, ROWS, rng), rng.integers(STATES + 2, size=ROWS)
    token, u = random_text(graph.bundle, (ROWS,), rng), rng.random((STEPS, ROWS), np.float32)
    called = graph.run(decode_feeds(graph.session, token, states, u, Sampling()) | tables | {"automaton": automaton})
    for step in range(STEPS):
        takes = tables["continues"][automaton, 0] > 0
        feeds = decode_feeds(graph.session, token, states, u[[step]], Sampling()) | tables
        got = graph.run(feeds | {"automaton": automaton, "steps": takes.astype(np.int64)})
        chosen, after = got["tokens"][0], got["automata"][0]
        if (takes & ((called["tokens"][step] != chosen) | (called["automata"][step] != after))).any():
            raise ParityError(f"{graph.name}: a call of {STEPS} steps differs from as many calls of one")
        automaton = np.where(takes, after, automaton)
        token = np.where(takes & tables["reads"][automaton, 0], chosen, token)
        for name, values in next_states(got).items():
            stays = ~(takes & tables["reads"][automaton, 0])
            rows = np.moveaxis(values != states[name], 0 if name == "context" else 1, 0)
            if rows[stays].any():
                raise ParityError(f"{graph.name}: a text that has ended changes {name}")
        states = next_states(got)
    for name, values in next_states(called).items():
        if (values != states[name]).any():
            raise ParityError(f"{graph.name}: {name} differs between a call of {STEPS} steps and as many calls of one")


def _next(tables: Named, automaton: Array, chosen: Array) -> Array:
    """The states after symbols."""
    following: Array = tables["transitions"].reshape(tables["allowed"].shape)[automaton, chosen]
    return following


def _leaving_one(sampling: Sampling, allowed: Array) -> Sampling:
    """`sampling` without its biases, if they ban all symbols that are allowed, float32 [vocab]."""
    banned = [symbol for symbol, value in sampling.logit_bias.items() if value == -np.inf]
    left = allowed == 0
    left[banned] = False
    return sampling if left.any() else replace(sampling, logit_bias={})
