"""Build all graphs of a run as a bundle in memory."""

import json

from rill.bundle import PRECISIONS, VARIANTS, Bundle, model_id, vocabulary_metadata
from rill.export.errors import UnsupportedError
from rill.export.graphs.portable import model_graph, states_of
from rill.export.graphs.serving import decode_graph
from rill.export.graphs.weights import weights_of
from rill.train.config import ModelConfig
from rill.train.record.run import Run


def build_bundle(run: Run, name: str, precision: str = "fp32") -> Bundle:
    """Build the bundle of a run: all graphs of a generator, the portable graph alone of a tagger, which cannot stream.

    Equal runs give equal bytes: the graphs hold no name, path or time. Raises UnsupportedError.
    """
    config, vocabulary = run.model, run.vocabulary
    _require_precision(config, precision)
    weights, states = weights_of(run), states_of(config)
    metadata = {  # what another program needs to run a graph alone
        "rill.model": json.dumps(config.to_json()),
        "rill.states": json.dumps([{"name": name, "shape": shape} for name, shape in states]),
        **vocabulary_metadata(vocabulary),
    }
    if run.labels:
        metadata["rill.labels"] = json.dumps(run.labels, ensure_ascii=False)
    graphs = {"model": model_graph(config, weights, precision, metadata)}
    if config.task == "generate":
        for variant in VARIANTS:
            graphs[variant.key] = decode_graph(config, weights, vocabulary.unknown_id, variant, precision, metadata)
    return Bundle(
        name=name,
        model_id=model_id(graphs, vocabulary, run.labels),
        model=config.to_json(),
        precision=precision,
        vocabulary=vocabulary,
        states=states,
        graphs=graphs,
        labels=run.labels,
    )


def _require_precision(config: ModelConfig, precision: str) -> None:
    """Raise UnsupportedError unless a bundle of this model can be made in `precision`."""
    if precision not in PRECISIONS:
        raise UnsupportedError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    if precision == "int8" and config.task == "tag":
        raise UnsupportedError("int8 applies to serving graphs, and a tagger has none; export it as fp32")
