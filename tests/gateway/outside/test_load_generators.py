"""NVIDIA's aiperf with a gateway as its server, and a tokenizer that `rill tokenizer` wrote."""

import json

import outside
import pytest

from rill.cli.main import main

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def test_aiperf(gateway, server, tmp_path):
    """A short run without errors; its counts of symbols are those that the gateway reports."""
    environment = outside.python("aiperf", "aiperf==0.13.0")
    assert main(["tokenizer", str(tmp_path / "tokenizer"), "--target", server.target]) == 0
    done = environment.run(
        "aiperf",
        *("profile", "--model", "tiny", "--endpoint-type", "completions", "--streaming", "--url", gateway.url),
        *("--tokenizer", tmp_path / "tokenizer", "--synthetic-input-tokens-mean", 40, "--output-tokens-mean", 60),
        *("--request-count", 40, "--concurrency", 8, "--ui", "none", "--artifact-dir", tmp_path / "out"),
        cwd=tmp_path,
        environment={"HF_HOME": str(tmp_path / "home"), "DO_NOT_TRACK": "1"},
    )
    assert "Token Count Discrepancy" not in done.stdout
    results = json.loads((tmp_path / "out" / "profile_export_aiperf.json").read_text())
    assert results["error_summary"] == []
    assert results["request_count"]["avg"] == 40
    assert results["usage_discrepancy_count"]["avg"] == 0
    assert results["output_sequence_length"]["avg"] == 60
