"""Loading the serving graphs of a bundle."""

from dataclasses import replace

import pytest

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
