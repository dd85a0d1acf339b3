"""The comparison with a plain PyTorch loop: the loop samples the model, and the command compares."""

import json
from dataclasses import replace

import pytest
import torch
from random_models import MOLECULES, make_run, save_run

from rill.bench import sampling
from rill.bench.cores import two_cores
from rill.bench.peers.sampling_loop import SamplingLoop
from rill.train.record.run import Run


def end_bias(run: Run, bias: float) -> Run:
    """The same run, which ends a text as soon as possible or never."""
    biased = run.weights["linear.bias"].clone()
    biased[list(run.vocabulary.end_ids)] = bias
    return replace(run, weights=run.weights | {"linear.bias": biased})


def test_the_loop_samples_the_model() -> None:
    torch.manual_seed(0)
    run = make_run(layers=2, embedding=8)
    loop, model = SamplingLoop(run, 4, [6]), run.build().eval()
    seen: list[torch.Tensor] = []
    loop._embedding.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    outputs: list[torch.Tensor] = []
    loop._linear.register_forward_hook(lambda module, inputs, output: outputs.append(output.clone()))
    assert loop.sample() == 24
    tokens = torch.cat(seen, dim=1)
    with torch.inference_mode():
        logits, _ = model(tokens, model.initial_state(4))
    torch.testing.assert_close(torch.stack(outputs, dim=1), logits)
    assert (tokens[:, 0] == run.vocabulary.start_id).all()


def test_the_loop_ends_where_every_row_has_ended() -> None:
    run = make_run(MOLECULES, embedding=8)
    assert SamplingLoop(end_bias(run, 1e4), 4, None).sample() == 0
    assert SamplingLoop(end_bias(run, -1e4), 4, None, most=9).sample() == 36
    steps: list[object] = []
    loop = SamplingLoop(run, 100, [2, 5])
    loop._linear.register_forward_hook(lambda *_: steps.append(None))
    assert 200 < loop.sample() < 500
    assert len(steps) == 5


@pytest.mark.long
@pytest.mark.skipif(two_cores() is None, reason="it needs two cores")
def test_the_command_compares(tmp_path, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(sampling, "_random_run", lambda: make_run(embedding=8))
    monkeypatch.setattr(sampling, "WARM_UP", 0.1)
    found = tmp_path / "found.json"
    assert sampling.main(["--pairs", "1", "--seconds", "0.3", "--streams", "4", "--json", str(found)]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1].startswith("Rill is ")
    (pair,) = json.loads(found.read_text())
    assert pair["ratio"] > 0
    assert 30 < pair["loop"][0] / pair["loop"][1] < 41  # symbols of a text


def test_models_that_cannot_be_compared(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    save_run(make_run(), tmp_path / "run")
    assert sampling.main(["--run", str(tmp_path / "run")]) == 2
    assert "is a model without an end symbol" in capsys.readouterr().err
    assert sampling.main(["--run", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
