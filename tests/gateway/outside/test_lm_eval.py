"""EleutherAI's lm-eval with a gateway as its model, on tasks in local files."""

import json
import math
import re
from pathlib import Path

import outside
import pytest
from gateways import Gateway, run_gateway
from servers import Server

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

MODEL = "tiny"
CHOICE = """
task: rill_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/choice.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
"""
TEXT = """
task: rill_text
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/text.jsonl
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: bits_per_byte
"""
GENERATE = """
task: rill_line
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/choice.jsonl
test_split: test
output_type: generate_until
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{line}}}}"
generation_kwargs:
  until: ["."]
  max_gen_toks: 60
  temperature: 0
metric_list:
  - metric: exact_match
"""


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Texts of the model's alphabet, the last one longer than lm-eval's usual window of 2,048."""
    words = "the man had a cat, and it was thé best.\nNo one knew why.\n\n"
    return [words, "A", " an end ", words * 40]


@pytest.fixture(scope="module")
def questions(server: Server) -> list[dict[str, object]]:
    """Questions whose right answer is what the model itself finds most probable, from its first symbol on."""
    with server.client() as client:

        def greedy(context: str, **parameters: object) -> str:
            return "".join(client.generate(context, temperature=0, **parameters))

        return [
            {
                "context": context,
                "choices": ["zz. zz", greedy(context, max_chars=8), "Q" * 12],
                "answer": 1,
                "line": greedy(context, max_chars=60, stop=[".", "\n"]),
            }
            for context in ("a", "the man", "No one k", "é", "x y z")
        ]


@pytest.fixture(scope="module", params=["1", "4"], ids=["one at a time", "four at a time"])
def answers(
    request: pytest.FixtureRequest,
    gateway: Gateway,
    questions: list[dict[str, object]],
    texts: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder that lm-eval wrote; requests hold so many prompts, and so many are under way at once."""
    environment = outside.python("lm-eval", "lm-eval[api]==0.4.13")
    folder = tmp_path_factory.mktemp("lm_eval")
    for name, task in (("choice", CHOICE), ("text", TEXT), ("line", GENERATE)):
        (folder / f"{name}.yaml").write_text(task.format(folder=folder))
    (folder / "choice.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    arguments = {
        "base_url": f"{gateway.url}/v1/completions",
        "model": MODEL,
        "max_length": 100_000,  # one window for each text, as `rill score` has
        "num_concurrent": request.param,
    }
    environment.run(
        "lm-eval",
        *("run", "--model", "local-completions", "--batch_size", request.param),
        *("--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())),
        *("--tasks", "rill_choice,rill_text,rill_line", "--include_path", folder),
        *("--output_path", folder / "out", "--log_samples"),
        cwd=folder,
        environment={"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "home")},
    )
    return folder / "out"


def results_of(folder: Path) -> dict[str, dict[str, float]]:
    (path,) = folder.rglob("results_*.json")
    found: dict[str, dict[str, float]] = json.loads(path.read_text())["results"]
    return found


def samples_of(folder: Path, task: str) -> list[dict]:
    (path,) = folder.rglob(f"samples_{task}_*.jsonl")
    return sorted(map(json.loads, path.read_text().splitlines()), key=lambda sample: sample["doc_id"])


def test_bits_per_byte_are_those_of_rill_score(answers, texts, server):
    with server.client() as client:
        totals = [list(client.score(text))[-1].total for text in texts]
    expected = -sum(total.logprob for total in totals) / sum(len(text.encode()) for text in texts) / math.log(2)
    assert results_of(answers)["rill_text"]["bits_per_byte,none"] == pytest.approx(expected, abs=1e-5)
    for sample, total in zip(samples_of(answers, "rill_text"), totals, strict=True):
        assert float(sample["resps"][0][0]) == pytest.approx(total.logprob, abs=1e-3)


def test_the_model_chooses_what_it_would_write(answers, questions, server):
    """Log-probabilities of the answers are those of the server; what it would write itself is called greedy."""
    assert results_of(answers)["rill_choice"]["acc,none"] == 1.0
    for sample, question in zip(samples_of(answers, "rill_choice"), questions, strict=True):
        found = [(float(logprob), str(is_greedy)) for ((logprob, is_greedy),) in sample["resps"]]
        assert [is_greedy for _, is_greedy in found] == ["False", "True", "False"]
        for (logprob, _), choice in zip(found, question["choices"], strict=True):
            assert logprob == pytest.approx(score(server, question["context"], choice), abs=1e-3)


def score(server: Server, context: str, choice: str) -> float:
    """The log-probability of a text behind another, which is read as a prompt is."""
    with server.client() as client:
        found = [one for message in client.score(context + choice, as_prompt=True) for one in message.logprobs]
    return sum(found[-len(choice) :])


def test_texts_end_at_a_stop(answers, questions):
    lines = [sample["resps"][0][0] for sample in samples_of(answers, "rill_line")]
    assert lines == [question["line"] for question in questions]
    assert not re.search(r"[.\n]", "".join(lines))


def test_a_model_with_a_start_symbol_and_ends_has_the_figures_of_rill_score(molecule_server, tmp_path):
    """Its start symbol has id 0, in whose place lm-eval has the end symbol."""
    environment = outside.python("lm-eval", "lm-eval[api]==0.4.13")
    texts = ["CCl[nH]", "Br", "CC(=O)N1", "C%10" * 40]
    (tmp_path / "text.yaml").write_text(TEXT.format(folder=tmp_path))
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with run_gateway(molecule_server.target) as gateway:
        arguments = f"base_url={gateway.url}/v1/completions,model=molecules,max_length=100000,tokenizer_backend=remote"
        environment.run(
            *("lm-eval", "run", "--model", "local-completions", "--batch_size", "2", "--model_args", arguments),
            *("--tasks", "rill_text", "--include_path", tmp_path, "--output_path", tmp_path / "out", "--log_samples"),
            cwd=tmp_path,
            environment={"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
        )
    with molecule_server.client() as client:
        totals = [list(client.score(text))[-1].total.logprob for text in texts]
    found = [float(sample["resps"][0][0]) for sample in samples_of(tmp_path / "out", "rill_text")]
    assert found == pytest.approx(totals, abs=1e-3)
