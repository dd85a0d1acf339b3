"""Build all graphs of a run as a bundle in memory."""

import json
from typing import Any

from rill.bundle import (
    CONSTRAINED_VARIANTS,
    PRECISIONS,
    VARIANTS,
    Bundle,
    Variant,
    model_id,
    state_entries,
    vocabulary_metadata,
)
from rill.export.errors import UnsupportedError
from rill.export.graphs.ngrams import InputTable
from rill.export.graphs.portable import model_graph, states_of
from rill.export.graphs.serving import decode_graph
from rill.export.graphs.weights import weights_of
from rill.ngrams import multipliers, rows_of
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
        "rill.states": json.dumps(
            [{key: entry[key] for key in entry if key != "next"} for entry in state_entries(states)]
        ),
        **vocabulary_metadata(vocabulary),
    }
    if config.ngrams > 1:
        metadata["rill.ngrams"] = json.dumps(ngrams_described(config, len(vocabulary)))
    if run.labels:
        metadata["rill.labels"] = json.dumps(run.labels, ensure_ascii=False)
    table = InputTable.of(config, weights) if weights.ngrams else None
    ngrams = table.file() if table else b""

    def serving(variants: tuple[Variant, ...]) -> dict[str, bytes]:
        return {
            variant.key: decode_graph(config, weights, vocabulary, variant, precision, metadata, table)
            for variant in variants
            if config.task == "generate"
        }

    graphs = {"model": model_graph(config, weights, precision, metadata), **serving(VARIANTS)}
    return Bundle(
        name=name,
        model_id=model_id(graphs, vocabulary, run.labels, ngrams),
        model=config.to_json(),
        precision=precision,
        vocabulary=vocabulary,
        states=states,
        graphs=graphs,
        labels=run.labels,
        ngrams=ngrams,
        constrained=serving(CONSTRAINED_VARIANTS),
    )


def ngrams_described(config: ModelConfig, symbols: int) -> dict[str, Any]:
    """The n-gram tables in words and numbers, for programs that know nothing of Rill."""
    orders = range(2, config.ngrams + 1)
    return {
        "description": (
            "The input at each position is the row of the symbol itself plus, for each order k, row (sum of "
            "multipliers[i] * x[i]) mod rows of the table ngrams.k.weight, in int64; x[0] is the symbol at that "
            "position, x[1] the one before it, and so on. The context holds the last symbols that were read, the "
            "oldest first, and is 0 at first."
        ),
        "orders": [
            {
                "order": order,
                "table": f"ngrams.{order}.weight",
                "rows": rows_of(order, symbols, config.ngram_rows),
                "multipliers": list(multipliers(order, symbols)),
            }
            for order in orders
        ],
    }


def _require_precision(config: ModelConfig, precision: str) -> None:
    """Raise UnsupportedError unless a bundle of this model can be made in `precision`."""
    if precision not in PRECISIONS:
        raise UnsupportedError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    if precision == "int8" and config.task == "tag":
        raise UnsupportedError("int8 applies to serving graphs, and a tagger has none; export it as fp32")
