"""`rill models` says of each model what text is to it."""

import pytest

from rill.cli.main import main
from rill.client.sync import Client
from rill.v1 import rill_pb2 as pb

USUAL = {"name": "m", "cell": "gru", "layers": 1, "hidden": 8, "vocabulary_size": 3, "precision": "fp32",
         "provider": "CPU", "state_bytes": 32, "model_id": "a" * 64}  # fmt: skip


@pytest.mark.parametrize(
    ("peculiar", "shown"),
    [
        ({}, ""),  # an earlier server
        ({"tokenizer": "characters", "ngrams": 1}, ""),
        ({"tokenizer": "sequences"}, ""),
        ({"ngrams": 3, "tokenizer": "longest"}, ", 3-grams, tokenizer longest"),
        ({"start_symbol": "<start>", "end_symbols": ["\n", "$"]}, ', start "<start>", end "\\n" "$"'),
        ({"tokenizer": "regex:Cl|."}, ", tokenizer regex:Cl|."),
    ],
)
def test_what_is_peculiar_about_a_model(monkeypatch, capsys, peculiar, shown):
    served = pb.ListModelsResponse(models=[pb.ModelInfo(**USUAL, **peculiar)])
    monkeypatch.setattr(Client, "models", lambda self, timeout: served)
    assert main(["models"]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line == f"m: gru 1 x 8, 3 symbols, fp32, CPU, 32 bytes a stream, aaaaaaaaaaaa{shown}"
