"""`rill train report`, and recipes."""

import json
import math
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from servers import ROOT

import rill.train.record.recipe
from rill.train.command import main as train
from rill.train.command import parse_options
from rill.train.config import HORIZONS, ModelConfig, TrainingConfig
from rill.train.errors import ConfigError
from rill.train.options import option_of
from rill.train.plan import configure
from rill.train.record.recipe import load_recipe, recipe_names
from rill.train.report import main, read_row

RECIPE = """
description = "a small LSTM"
wants = "The Time Machine"
[model]
cell = "lstm"
residual = true
[training]
characters = 10000
epochs = 500
learning_rate = 1
schedule = "constant"
prefix = ["time traveller", "it's | \\"so\\""]
device = "cpu"
[published]
result = "1.0 | sequential"
source = "a book, chapter 9"
[target]
perplexity = 1.05
val_loss = 1.5
val_accuracy = 0.75
"""
TABLES = """
[model]
ngrams = 4
ngram_rows = 500
[training]
ngram_dropout = 0.2
ngram_decay = 0.5
"""
SUMMARY = {
    "val_loss": 1.25,
    "step": 20,
    "steps": 30,
    "train_loss": math.log(1.04),
    "bits_per_char": 1.25 / math.log(2),
    "chars": 15_000,
    "chars_per_second": 1500.0,
    "seconds": 10.0,
    "parameters": 1234,
    "val_chars": 1000,
}
LINE = {
    "step": 20,
    "epoch": 4.0,
    "chars": 8000,
    "train_loss": 2.0,
    "val_loss": None,
    "perplexity": math.exp(2),
    "bits_per_char": None,
    "chars_per_second": 900.0,
    "seconds": 8.0,
    "learning_rate": 0.1,
}


@pytest.fixture(autouse=True)
def recipes(tmp_path_factory, monkeypatch):
    """A recipe folder with two recipes, `book` and `tables`."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "book.toml").write_text(RECIPE)
    (folder / "tables.toml").write_text(TABLES)
    monkeypatch.setattr(rill.train.record.recipe, "FOLDER", folder)
    return folder


def make_folder(path, training, model=None, summary=SUMMARY, lines=(LINE,), vocabulary="abc"):
    path.mkdir(parents=True, exist_ok=True)
    config = {
        "model": (model or ModelConfig()).to_json(),
        "training": training.to_json(),
        "vocabulary": list(vocabulary),
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if summary:
        (path / "summary.json").write_text(json.dumps(summary))
    return path


def recipe_run(path, **options):
    recipe = load_recipe("book")
    training = TrainingConfig(**recipe.training, recipe="book", corpus=("time machine.txt",))
    return make_folder(path, training, ModelConfig(**recipe.model), **options)


def report(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    out, errors = capsys.readouterr()
    return status, out, errors


def table(out):
    """The cells of the printed table: headings, then rows."""
    lines = [line for line in out.splitlines() if line.startswith(("┃", "│"))]
    return [[cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]] for line in lines]


def columns(out, *headings):
    """The rows of the table, reduced to these columns."""
    first, *lines = table(out)
    return [tuple(line[first.index(heading)] for heading in headings) for line in lines]


def test_the_table_and_the_commands(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe_run(tmp_path / "runs" / "b")
    recipe_run(tmp_path / "runs" / "a", summary=SUMMARY | {"train_loss": 0.5, "val_accuracy": 0.5})
    make_folder(tmp_path / "runs" / "z", TrainingConfig(corpus=("-",), max_minutes=2), ModelConfig(bias=False))
    status, out, errors = report(capsys, "runs/b", "runs/a", "runs/z")
    assert (status, errors) == (0, "")
    texts = ["run", "recipe", "published", "target"]
    assert columns(out, *texts) == [
        ("runs/z", "", "", ""),
        ("runs/a", "book", "1.0 | sequential", "perplexity ≤ 1.05: not met"),
        ("", "", "a book, chapter 9", "validation loss ≤ 1.5: met"),
        ("", "", "", "accuracy ≥ 0.75: not met"),
        ("runs/b", "book", "1.0 | sequential", "perplexity ≤ 1.05: met"),
        ("", "", "a book, chapter 9", "validation loss ≤ 1.5: met"),
        ("", "", "", "accuracy ≥ 0.75: not measured"),
    ]
    figures = ["perplexity", "validation loss", "bits/char", "accuracy", "seconds", "s/epoch", "characters/s"]
    assert [row for row in columns(out, *figures) if any(row)] == [
        ("1.040", "1.2500", "1.803", "", "10.0", "", "1,500"),
        ("1.649", "1.2500", "1.803", "0.5000", "10.0", "2.500", "1,500"),
        ("1.040", "1.2500", "1.803", "", "10.0", "2.500", "1,500"),
    ]
    assert out.splitlines()[-3:] == [
        "rill train --corpus - --max-minutes 2 --no-bias --out runs/z",
        "rill train --recipe book --corpus 'time machine.txt' --out runs/a",
        "rill train --recipe book --corpus 'time machine.txt' --out runs/b",
    ]


def test_columns_that_no_run_has_are_left_out(tmp_path, capsys):
    folder = make_folder(tmp_path / "run", TrainingConfig(steps=5))
    _, out, _ = report(capsys, folder)
    assert table(out)[0] == ["run", "perplexity", "validation loss", "bits/char", "seconds", "characters/s"]


def test_nothing_is_cut_off_or_interpreted_where_there_is_no_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    corpus = tuple(f"text {n}" for n in range(200))
    folder = make_folder(tmp_path / ("[red]:smile:" + "x" * 200), TrainingConfig(corpus=corpus, steps=5))
    _, out, _ = report(capsys, folder)
    *_, command = out.splitlines()
    assert shlex.split(command)[:3] == ["rill", "train", "--corpus"]
    assert shlex.split(command)[3:203] == list(corpus)
    assert shlex.split(command)[-1] == str(folder)
    assert "".join(row[0] for row in table(out)[1:]) == str(folder)


def test_an_unfinished_run_is_shown_as_its_last_whole_line_left_it(tmp_path, capsys):
    folder = recipe_run(tmp_path / "run", summary=None, lines=[LINE | {"train_loss": 3.0}, LINE])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "train_lo')
    row = read_row(folder)
    assert not row.finished
    figures = {"perplexity": math.exp(2), "seconds": 8.0, "seconds_per_epoch": 2.0, "chars_per_second": 900.0}
    assert row.figures == figures
    assert [row.met(name) for name in row.target] == [False, None, None]
    _, out, _ = report(capsys, folder)
    assert "".join(line[0] for line in table(out)[1:]).endswith("(unfinished)")


@pytest.mark.parametrize("damage", ["", "{", "[1]", "null", "\xff"])
def test_a_run_killed_in_the_middle_is_still_shown(tmp_path, damage):
    folder = recipe_run(tmp_path)
    for name in ("metrics.jsonl", "summary.json"):
        (folder / name).write_bytes(damage.encode("latin-1"))
    row = read_row(folder)
    assert not row.finished
    assert row.figures == {}


def test_a_run_without_any_evaluation_is_shown(tmp_path, capsys):
    folder = make_folder(tmp_path / "run", TrainingConfig(steps=5), summary=None)
    (folder / "metrics.jsonl").unlink()
    status, out, _ = report(capsys, folder)
    assert status == 0
    assert table(out)[0] == ["run"]


@pytest.mark.parametrize("config", [None, "{", "[]", '{"model": {}}', '{"model": {}, "training": 1}'])
def test_a_folder_that_is_no_run_is_named_and_the_others_are_reported(tmp_path, capsys, config):
    folder = make_folder(tmp_path / "run", TrainingConfig(steps=5))
    other = tmp_path / "other"
    other.mkdir()
    if config is not None:
        (other / "config.json").write_text(config)
    status, out, errors = report(capsys, other, folder)
    assert (status, errors) == (1, f"{other} is not a run: it has no readable config.json\n")
    assert out.splitlines()[-1].endswith(f"--out {folder}")
    assert report(capsys, other) == (1, "", errors)


def test_markdown(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe_run(tmp_path / "run")
    assert report(capsys, "run", "--markdown") == (
        0,
        "| run | recipe | perplexity | validation loss | bits/char | published | target | seconds | s/epoch"
        " | characters/s |\n"
        "| --- | --- | ---: | ---: | ---: | --- | --- | ---: | ---: | ---: |\n"
        "| run | book | 1.040 | 1.2500 | 1.803 | 1.0 \\| sequential; a book, chapter 9 | perplexity ≤ 1.05: met;"
        " validation loss ≤ 1.5: met; accuracy ≥ 0.75: not measured | 10.0 | 2.500 | 1,500 |\n"
        "\n```sh\nrill train --recipe book --corpus 'time machine.txt' --out run\n```\n",
        "",
    )


def test_json(tmp_path, capsys):
    folder = recipe_run(tmp_path / "run", summary=SUMMARY | {"train_loss": 800})
    status, _, _ = report(capsys, folder, "--json", tmp_path / "report.json")
    (row,) = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert status == 0
    assert row == {
        "run": str(folder),
        "recipe": "book",
        "finished": True,
        "figures": {"perplexity": None, "val_loss": 1.25, "bits_per_char": SUMMARY["bits_per_char"]}
        | {"seconds": 10.0, "seconds_per_epoch": 2.5, "chars_per_second": 1500.0},
        "published": {"result": "1.0 | sequential", "source": "a book, chapter 9"},
        "target": {
            "perplexity": {"value": 1.05, "met": False},
            "val_loss": {"value": 1.5, "met": True},
            "val_accuracy": {"value": 0.75, "met": None},
        },
        "command": f"rill train --recipe book --corpus 'time machine.txt' --out {shlex.quote(str(folder))}",
    }


def test_a_json_file_that_cannot_be_written_is_status_2(tmp_path, devices, capsys):
    folder = make_folder(tmp_path / "run", TrainingConfig(steps=5))
    with pytest.raises(SystemExit) as caught:
        report(capsys, folder, "--json", tmp_path / "nowhere" / "report.json")
    assert caught.value.code == 2
    assert f"there is no folder {tmp_path / 'nowhere'}" in capsys.readouterr().err
    if Path("/dev/full").exists():  # found at the end only
        status, out, errors = report(capsys, folder, "--json", devices / "full")
        assert (status, errors) == (2, f"error: --json {devices}/full: No space left on device\n")
        assert table(out)


def configured(command):
    """The configurations that a command results in, and its output folder."""
    options = parse_options(shlex.split(command)[2:])
    recipe = load_recipe(options.pop("recipe")) if "recipe" in options else None
    folder = options.pop("out")
    return *configure(folder, None, recipe, None, options), folder


def whole(least=0):
    return st.integers(least, 2000)


texts = st.lists(
    st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda text: not text.startswith("-")) | st.just("-"),
    min_size=1,
    max_size=3,
).map(tuple)
fractions = st.floats(0, 1, exclude_max=True)
positives = st.floats(0, exclude_min=True, allow_infinity=False)
model_options = st.fixed_dictionaries(
    {},
    optional={
        "task": st.sampled_from(["generate", "tag"]),
        "cell": st.sampled_from(["gru", "lstm", "rnn"]),
        "reset": st.sampled_from(["after", "before"]),
        **{name: whole(1) for name in ("layers", "hidden")},
        "embedding": whole(),
        "bias": st.just(False),
        **{name: st.just(True) for name in ("residual", "bidirectional")},
        "dropout": fractions,
        "ngrams": st.sampled_from([1, 3, 4]),
        "ngram_rows": st.sampled_from([500, 600]),
    },
)
training_options = st.fixed_dictionaries(
    {"corpus": texts},
    optional={
        "validation_corpus": texts,
        "suffix": st.sampled_from([(".abc",), (".log", ".tar.out")]),
        "encoding": st.sampled_from(["cp1252", "utf-8,cp1252"]),
        "prepare": st.sampled_from(["none", "letters", "line"]),
        **{name: whole(1) for name in ("characters", "min_count", "batch", "window", "accumulate")},
        **{name: whole() for name in ("validation_characters", "patience", "warmup", "sample_every", "threads")},
        **dict.fromkeys(("validation", "momentum", "ngram_dropout"), fractions),
        **dict.fromkeys(("learning_rate", "weight_decay", "clip", "temperature"), positives),
        "sampling": st.just("random"),
        "optimizer": st.sampled_from(["adamw", "sgd", "rmsprop"]),
        "schedule": st.sampled_from(["cosine", "constant"]),
        "initialization": st.sampled_from(["default", "normal", "orthogonal"]),
        "scratch": st.just(True),
        "precision": st.just("bf16"),
        "keep": st.just("last"),
        "seed": st.integers(0, 2**64 - 1),
        "device": st.sampled_from(["auto", "cpu", "cuda:1"]),
        **{name: whole() for name in ("evaluate_every", "evaluate_epochs")},
        "prefix": texts,
    },
)
horizons = st.one_of(
    st.fixed_dictionaries({"steps": whole(1)}),
    st.fixed_dictionaries({"epochs": whole(1)}),
    st.fixed_dictionaries({"max_minutes": positives}),
)


@given(
    recipe=st.sampled_from([None, "book", "tables"]), model=model_options, training=training_options, horizon=horizons
)
def test_the_command_makes_the_same_configuration(tmp_path_factory, recipe, model, training, horizon):
    folder = tmp_path_factory.getbasetemp() / "a run"
    if recipe:
        model = load_recipe(recipe).model | model
        training = load_recipe(recipe).training | dict.fromkeys(HORIZONS) | training
    if model.get("ngrams", 1) == 1:  # without these tables, nothing of theirs can be given
        model, training = ({name: part[name] for name in part if "ngram_" not in name} for part in (model, training))
    try:
        model = ModelConfig(**model)
        training = TrainingConfig(**training | horizon | {"recipe": recipe or "", "corpus_sha256": "0" * 64})
    except ConfigError:
        assume(False)
    made_model, made_training, out = configured(read_row(make_folder(folder, training, model)).command)
    assert made_model == model
    assert made_training.to_json() == training.to_json() | {"corpus_sha256": ""}
    assert out == str(folder)


def test_every_value_of_a_configuration_has_its_option():
    declared = [field for section in (ModelConfig, TrainingConfig) for field in fields(section)]
    assert [field.name for field in declared if option_of(field) is None] == ["corpus_sha256"]


def test_a_run_from_an_older_version_takes_the_defaults(tmp_path):
    folder = make_folder(tmp_path, TrainingConfig(steps=5, corpus=("a.txt",)))
    config = {"model": {"hidden": 8}, "training": {"steps": 5, "corpus": ["a.txt"]}}
    (folder / "config.json").write_text(json.dumps(config))
    assert read_row(folder).command == f"rill train --corpus a.txt --steps 5 --hidden 8 --out {folder}"


def test_a_run_that_continues_another_is_given_by_what_differs_from_that(tmp_path):
    start = make_folder(tmp_path / "start", TrainingConfig(steps=5), ModelConfig(hidden=8, dropout=0.5))
    training = TrainingConfig(steps=5, corpus=("b.txt",), start=str(start))
    for dropout, vocabulary, options in ((0.5, "abc", ""), (0.0, "abcd", " --dropout 0 --extend-vocabulary")):
        model = ModelConfig(hidden=8, dropout=dropout)
        folder = make_folder(tmp_path / "run", training, model, vocabulary=vocabulary)
        expected = f"rill train --corpus b.txt --from {start} --steps 5{options} --out {folder}"
        assert read_row(folder).command == expected
        assert parse_options(expected.split()[2:])["start"] == str(start)


def test_without_its_recipe_a_run_is_given_in_full(tmp_path, capsys, recipes):
    folder = recipe_run(tmp_path / "run")
    before = read_row(folder)
    (recipes / "book.toml").unlink()
    status, out, errors = report(capsys, folder)
    assert status == 0
    assert errors.startswith(f"{folder}: there is no recipe 'book'; ")
    assert table(out)[1][1] == "book"
    model, training, _ = configured(out.splitlines()[-1])
    (recipes / "book.toml").write_text(RECIPE)
    expected_model, expected_training, _ = configured(before.command)
    assert model == expected_model
    assert training.to_json() == expected_training.to_json() | {"recipe": ""}


def test_rill_train_report_is_this_command(tmp_path, capsys):
    folder = make_folder(tmp_path / "run", TrainingConfig(steps=5))
    expected = report(capsys, folder)
    assert (train(["report", str(folder)]), *capsys.readouterr()) == expected


def test_reporting_does_not_load_torch(tmp_path):
    folder = make_folder(tmp_path / "run", TrainingConfig(steps=5))
    program = f"import sys; from rill.train.report import main; print(main([{str(folder)!r}]), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"


def test_a_recipe_by_its_name(recipes):
    recipe = load_recipe("book")
    assert (recipe.name, recipe.description, recipe.wants) == ("book", "a small LSTM", "The Time Machine")
    assert recipe.model == {"cell": "lstm", "residual": True}
    assert recipe.training["prefix"] == ("time traveller", 'it\'s | "so"')
    assert recipe.target == {"perplexity": 1.05, "val_loss": 1.5, "val_accuracy": 0.75}
    (recipes / "another.toml").write_text("")
    (recipes / "notes.txt").write_text("")
    assert recipe_names() == ["another", "book", "tables"]


def test_a_recipe_by_its_path(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[training]\ncorpus = ["a.txt"]')
    recipe = load_recipe(str(path))
    assert (recipe.name, recipe.wants, recipe.training) == (str(path), "", {"corpus": ("a.txt",)})
    assert (recipe.model, recipe.published, recipe.target) == ({}, {}, {})
    folder = make_folder(tmp_path / "run", TrainingConfig(recipe=str(path), corpus=("a.txt",), steps=3))
    assert read_row(folder).command == f"rill train --recipe {path} --steps 3 --out {folder}"


@pytest.mark.parametrize("name", ["boo", "", "../{}/book", "book.tom"])
def test_an_unknown_recipe_is_answered_with_the_known_ones(recipes, name):
    with pytest.raises(ConfigError, match=r"there is no recipe .*; choose one of book, tables, or"):
        load_recipe(name.format(recipes.name))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "recipe {} cannot be read: No such file or directory"),
        ("[model", "recipe {} is damaged: "),
        (b"\xff", "recipe {} is damaged: "),
        (
            "[modle]\nhidden = 3",
            "recipe {} has unknown keys: 'modle'; known are description, wants and the sections model, ",
        ),
        ("hidden = 3", "recipe {} has unknown keys: 'hidden'; known are "),
        ("model = 3", "recipe {}: model must be a section, [model]"),
        ("[model]\nhiden = 3\nbatch = 1", "recipe {}: [model] has unknown keys: 'batch', 'hiden'"),
        ("[training]\nhidden = 3", "recipe {}: [training] has unknown keys: 'hidden'"),
        ('[training]\nrecipe = "x"', "recipe {}: [training] has unknown keys: 'recipe'"),
        ("[target]\naccuracy = 1.0", "recipe {}: [target] has unknown keys: 'accuracy'"),
        ('[target]\nval_loss = "1"', "recipe {}: [target] val_loss must be a finite number, not '1'"),
        ("[target]\nval_loss = true", "recipe {}: [target] val_loss must be a finite number, not True"),
        ("[target]\nval_loss = nan", "recipe {}: [target] val_loss must be a finite number, not nan"),
        ("[published]\nresult = 1.0", "recipe {}: result must be text, not 1.0"),
        ("wants = 1", "recipe {}: wants must be text, not 1"),
    ],
)
def test_a_wrong_recipe_is_explained(tmp_path, text, complaint):
    path = tmp_path / "mine.toml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as error:
        load_recipe(str(path))
    assert str(error.value).startswith(complaint.format(path))


def test_the_recipes_that_come_with_the_package_make_configurations(monkeypatch):
    monkeypatch.undo()
    for recipe in map(load_recipe, recipe_names()):
        configured(f"rill train --recipe {recipe.name} --out x{'' if recipe.training.get('corpus') else ' --corpus y'}")
        assert recipe.description
        assert bool(recipe.wants) != ("corpus" in recipe.training)


def test_the_rows_on_standard_output_are_alone_there(tmp_path, capfd):
    folder = recipe_run(tmp_path / "a")
    assert main([str(folder), "--json", "-"]) == 0
    out, errors = capfd.readouterr()
    assert [row["run"] for row in json.loads(out)] == [str(folder)]
    assert table(errors)
