"""What a constrained text should be: one step of a plain serving graph at a time, with the constraint as a bias."""

import numpy as np

from rill.bundle import DECODE, DECODE_LOGPROBS
from rill.sampling import uniforms
from rill.serve.constraints.automaton import FORBIDDEN
from rill.serve.engine.decoder import Decoder
from rill.serve.engine.states import initial_state, to_device
from rill.serve.engine.types import StreamSpec


def constrained_ids(decoder: Decoder, bundle, spec: StreamSpec, count: int) -> tuple[list[int], int, bool]:
    """The ids of at most `count` symbols, the state of the automaton after them, and whether the text has ended."""
    sampling, automaton, symbols = spec.sampling, spec.automaton, len(bundle.vocabulary)
    first = spec.state or initial_state(bundle)
    states = to_device(
        {name: np.expand_dims(values, 0 if name == "context" else 1) for name, values in first.items()}, "cpu", 0
    )
    prompt = [int(each) for each in spec.prompt[:]]
    if len(prompt) > 1:
        feeds = {
            "token": np.array(prompt[:1]),
            "uniforms": np.zeros((len(prompt) - 1, 1), np.float32),
            "forced": np.array(prompt[1:])[:, None],
            "steps": np.array([len(prompt) - 1]),
            "temperature": np.ones(1, np.float32),
        }
        _, states = decoder.run(DECODE.key, feeds, states)
    token, state, ids = prompt[-1], spec.automaton_state, []
    for u in uniforms(spec.seed, spec.position, count):
        if automaton.is_final[state]:
            return ids, state, True
        bias = np.where(automaton.transitions[state] == FORBIDDEN, np.float32(-np.inf), np.float32(0))
        for symbol, value in sampling.logit_bias.items():
            bias[symbol] += np.float32(value)
        feeds = {
            "token": np.array([token]),
            "uniforms": np.full((1, 1), u),
            "forced": np.full((1, 1), -1),
            "steps": np.ones(1, np.int64),
            "temperature": np.full(1, sampling.temperature, np.float32),
            "top_p": np.full(1, sampling.top_p, np.float32),
            "min_p": np.full(1, sampling.min_p, np.float32),
            "logit_bias": bias[None],
            "top_k": np.full(1, sampling.top_k),
            "window": np.array([symbols]),
        }
        results, states = decoder.run(DECODE_LOGPROBS.key, feeds, states)
        token = int(results["tokens"][0, 0])
        state = int(automaton.transitions[state, token])
        if state == automaton.ended:
            return ids, state, True
        ids.append(token)
    return ids, state, bool(automaton.is_final[state])
