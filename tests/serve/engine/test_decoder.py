"""Loading the serving graphs of a bundle."""

from dataclasses import replace

import numpy as np
import pytest
from random_models import make_run

from rill.export.graphs.build import build_bundle
from rill.serve.engine.decoder import Decoder
from rill.serve.engine.devices import CPU
from rill.serve.errors import StartError
from rill.vocabulary import Vocabulary


@pytest.mark.parametrize(
    "change",
    [
        lambda bundle: {"graphs": {**bundle.graphs, "decode": bundle.graphs["model"]}},
        lambda bundle: {"graphs": {**bundle.graphs, "decode_top_p": bundle.graphs["decode"][:-9]}},
        lambda bundle: {"graphs": {"model": bundle.graphs["model"], "decode": bundle.graphs["decode"]}},
        lambda bundle: {"vocabulary": Vocabulary(tuple(reversed(bundle.vocabulary.symbols)))},
        lambda bundle: {"vocabulary": Vocabulary(bundle.vocabulary.symbols[:-1])},
        lambda bundle: {"states": (("state_h", (2, "batch", 32)),)},
        lambda bundle: {"states": (*bundle.states, ("state_c", (1, "batch", 32)))},
        lambda bundle: {"states": ()},
    ],
)
def test_graphs_that_do_not_match_the_manifest_are_refused_at_load(tiny, change):
    with pytest.raises(StartError, match="bundle 'tiny'") as caught:
        Decoder(replace(tiny, **change(tiny)), CPU)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def ngrams():
    return build_bundle(make_run(ngrams=3), "ngrams")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b, other: {"graphs": other.graphs}, r"no context of shape \['batch', 2\]"),
        (lambda b, other: {"states": (*b.states[:1], ("context", ("batch", 3)))}, "no context of shape"),
        (lambda b, other: {"states": b.states[:1]}, "has states that the manifest lacks: context"),
        (lambda b, other: {"model": {**b.model, "hidden": 16}, "ngrams": bytes(128) + b.ngrams[128:][: 4 * 11441 * 48]},
         r"no ngrams of shape \[11441, 48\]"),
        (lambda b, other: {"ngrams": b""}, "has n-gram tables that the manifest lacks"),
    ],
)  # fmt: skip
def test_ngram_graphs_that_do_not_match_the_manifest_are_refused_at_load(ngrams, tiny, change, message):
    with pytest.raises(StartError, match=message) as caught:
        Decoder(replace(ngrams, **change(ngrams, tiny)), CPU)
    assert "\n" not in str(caught.value)


def test_the_tables_are_in_memory_once(ngrams):
    """The bundle's own bytes are bound, for all four graphs."""
    decoder = Decoder(ngrams, CPU)
    (bound,) = decoder._constants.values()
    assert np.shares_memory(bound.numpy(), np.asarray(ngrams.ngrams_values))
