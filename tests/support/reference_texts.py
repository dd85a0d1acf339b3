"""What a text should be, by the serving graph itself or by a plain search."""

import numpy as np

from rill.export.parity.compare import decode_feeds, session, zero_states
from rill.sampling import Sampling, uniforms

SESSIONS = {}


def continuation(bundle, read, seed, start, count, **parameters):
    """What a stream makes from position `start` on after the model has `read` all this, by the serving graph itself.

    It ends before an end symbol.
    """
    vocabulary = bundle.vocabulary
    ids = vocabulary.begin(vocabulary.encode(read))
    bias = {vocabulary.id_of(c): value for c, value in parameters.pop("logit_bias", {}).items()}
    sampling = Sampling(logit_bias=bias, **parameters)
    key = "decode_top_k" if sampling.top_k else "decode_top_p" if sampling.filtered else "decode"
    if (bundle.model_id, key) not in SESSIONS:
        SESSIONS[bundle.model_id, key] = session(bundle.graphs[key], bundle)
    graph = SESSIONS[bundle.model_id, key]
    u = np.concatenate([np.zeros(len(ids) - 1, np.float32), uniforms(seed, start, count)])[:, None]
    feeds = decode_feeds(graph, np.array(ids[:1]), zero_states(bundle, 1), u, sampling)
    feeds["forced"][: len(ids) - 1, 0] = ids[1:]
    (tokens,) = graph.run(["tokens"], feeds)
    generated = tokens[len(ids) - 1 :, 0].tolist()
    end = next((at for at, one in enumerate(generated) if one in vocabulary.end_ids), count)
    return vocabulary.decode(generated[:end])


def reference(bundle, prompt, seed, count, **parameters):
    """The text by the serving graph itself, in one call for the whole of it."""
    return continuation(bundle, prompt, seed, 0, count, **parameters)


def first_stop(text, stops):
    """Where the first stop to be complete begins and ends; of several, the longest. None if there is none."""
    found = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    if not found:
        return None
    end, start = min(found)
    return start, end


def undecided(text, stops):
    """Where the longest end of `text` begins that may become a stop."""
    return min(at for at in range(len(text) + 1) if any(stop.startswith(text[at:]) for stop in stops))
