"""N-gram tables in training: their configuration, the model's input, the context, and runs that carry both."""

import json
from pathlib import Path

import pytest

from rill.train.command import main
from rill.train.config import ModelConfig
from rill.train.errors import ConfigError


def test_a_model_without_tables_is_stored_as_before_there_were_any() -> None:
    assert not ModelConfig().to_json().keys() & {"ngrams", "ngram_rows"}
    section = json.loads(json.dumps(ModelConfig(ngrams=3).to_json()))
    assert (section["ngrams"], section["ngram_rows"]) == (3, 8192)
    assert ModelConfig.from_json(section) == ModelConfig(ngrams=3)
    assert ModelConfig.from_json(ModelConfig().to_json()).ngrams == 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--ngrams 0", "ngrams must be a whole number of at least 1 and at most 8, not 0"),
        ("--ngrams 9", "ngrams must be a whole number of at least 1 and at most 8, not 9"),
        ("--ngrams 3 --ngram-rows 0", "ngram_rows must be a whole number of at least 1 and at most 16777216, not 0"),
        ("--ngram-rows 100", "ngram_rows is the size of n-gram tables; give ngrams, 2 or more, too"),
        ("--ngrams 2 --task tag", "n-gram tables are for models that predict the next symbol; a tagger has none"),
    ],
)
def test_options_that_describe_no_tables_are_refused(
    options: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--corpus", "x", "--out", str(tmp_path / "run"), *options.split()]) == 2
    assert capsys.readouterr().err.startswith(f"error: {complaint}")
    assert not (tmp_path / "run").exists()


def test_a_stored_true_is_not_a_number_of_symbols() -> None:
    with pytest.raises(ConfigError, match="ngrams must be"):
        ModelConfig.from_json({"ngrams": True})
