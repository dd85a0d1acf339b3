"""curves.png, and the scalars for TensorBoard."""

import json
import math
from importlib.machinery import PathFinder

import matplotlib.figure
import pytest

import rill.train.record.tensorboard
from rill.train.record.curves import draw_curves
from rill.train.record.tensorboard import TensorBoard


def metrics_line(index=1, **values):
    line = {
        "step": 10 * index,
        "epoch": index / 2,
        "chars": 1000 * index,
        "train_loss": 2.0 / index,
        "val_loss": 2.2 / index,
        "perplexity": math.exp(2.0 / index),
        "bits_per_char": 2.2 / index / math.log(2),
        "chars_per_second": 500.0,
        "seconds": 2.0 * index,
        "learning_rate": 0.005 / index,
    }
    return {key: value for key, value in (line | values).items() if value != "absent"}


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draw lines of metrics.jsonl; returns the rows of the figure, each a pair of axes, by title."""
    figures = []

    class Kept(matplotlib.figure.Figure):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            figures.append(self)

    monkeypatch.setattr(matplotlib.figure, "Figure", Kept)

    def run(*lines):
        metrics, image = tmp_path / "metrics.jsonl", tmp_path / "curves.png"
        metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
        draw_curves(metrics, image)
        assert image.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert sorted(tmp_path.iterdir()) == [image, metrics]
        axes = figures.pop().axes
        return {left.get_ylabel(): (left, right) for left, right in zip(axes[::2], axes[1::2], strict=True)}

    return run


def drawn(axes):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def test_every_row_is_drawn_against_characters_and_time(draw):
    rows = draw(metrics_line(1), metrics_line(2), metrics_line(4))
    assert list(rows) == ["loss, nats per character", "perplexity", "learning rate"]
    left, right = rows["loss, nats per character"]
    assert drawn(left)["training"] == ([1000, 2000, 4000], [2.0, 1.0, 0.5])
    assert drawn(right)["validation"] == ([2.0, 4.0, 8.0], [2.2, 1.1, 0.55])
    assert drawn(rows["perplexity"][0])["validation"][1] == pytest.approx([math.exp(2.2 / n) for n in (1, 2, 4)])
    assert drawn(rows["learning rate"][1])["learning rate"] == ([2.0, 4.0, 8.0], [0.005, 0.0025, 0.00125])
    assert [axes.get_xlabel() for axes in rows["learning rate"]] == ["characters read", "seconds"]


def test_a_taggers_accuracy_has_a_row(draw):
    lines = [metrics_line(n, val_accuracy=accuracy, learning_rate="absent") for n, accuracy in ((1, 0.5), (2, 0.75))]
    rows = draw(*lines)
    assert list(rows) == ["loss, nats per character", "perplexity", "accuracy"]  # and no row for what no line has
    assert drawn(rows["accuracy"][0]) == {"validation": ([1000, 2000], [0.5, 0.75])}


@pytest.mark.parametrize(
    ("last_perplexity", "scale"), [(2.1, "linear"), (1.9, "log"), (1e99, "log"), (math.inf, "linear")]
)
def test_perplexity_beyond_a_factor_of_ten_is_logarithmic(draw, last_perplexity, scale):
    lines = [metrics_line(1, perplexity=20, val_loss=None), metrics_line(2, perplexity=last_perplexity, val_loss=None)]
    assert [axes.get_yscale() for axes in draw(*lines)["perplexity"]] == [scale, scale]


@pytest.mark.parametrize(
    ("lines", "rows"),
    [
        ([metrics_line()], 3),
        ([metrics_line(val_loss=None, bits_per_char=None)], 3),
        ([metrics_line(1, learning_rate="absent"), metrics_line(2)], 3),  # begun by an older version
        ([metrics_line(1, learning_rate=0.1), metrics_line(2, learning_rate=0.1)], 3),
        ([metrics_line(train_loss=800.0, val_loss=900.0, perplexity=math.inf)], 3),
        ([metrics_line(train_loss=0.0, val_loss=0.0, perplexity=1.0, seconds=0.0)], 3),
        ([metrics_line(n) for n in range(1, 1001)], 3),
    ],
    ids=["one", "no_validation", "some_rate", "constant_rate", "infinite", "perfect", "many"],
)
def test_unusual_runs_are_drawn_without_a_warning(draw, lines, rows):
    assert len(draw(*lines)) == rows


def read_scalars(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def write_scalars(folder, at_step, *lines):
    board = TensorBoard(folder, at_step)
    for line in lines:
        board.evaluation(line)
    board.close()


def test_tensorboard_reads_every_scalar(tmp_path):
    pytest.importorskip("tensorboard")
    write_scalars(tmp_path, 0, metrics_line(1, val_accuracy=0.5), metrics_line(2, val_accuracy=0.75))
    scalars = read_scalars(tmp_path)
    assert set(scalars) == set(rill.train.record.tensorboard.TAGS.values())
    assert scalars["loss/train"] == [(10, 2.0), (20, 1.0)]
    assert scalars["accuracy/validation"] == [(10, 0.5), (20, 0.75)]


def test_tensorboard_leaves_out_what_was_not_measured(tmp_path):
    pytest.importorskip("tensorboard")
    write_scalars(tmp_path, 0, metrics_line(1, val_loss=None, bits_per_char=None))
    assert set(read_scalars(tmp_path)) == {"loss/train", "perplexity/train", "learning_rate", "chars_per_second"}


def test_a_resumed_run_supersedes_only_what_came_after_its_checkpoint(tmp_path):
    pytest.importorskip("tensorboard")
    write_scalars(tmp_path, 0, *(metrics_line(n, train_loss=1.0) for n in (1, 2, 3)))
    write_scalars(tmp_path, 20, *(metrics_line(n, train_loss=2.0) for n in (3, 4)))
    assert read_scalars(tmp_path)["loss/train"] == [(10, 1.0), (20, 1.0), (30, 2.0), (40, 2.0)]


def test_an_evaluation_is_readable_before_the_run_ends(tmp_path):
    pytest.importorskip("tensorboard")
    board = TensorBoard(tmp_path, 0)
    board.evaluation(metrics_line(1))
    assert read_scalars(tmp_path)["loss/train"] == [(10, 2.0)]
    board.close()


@pytest.mark.parametrize("folder_of_that_name", [False, True])
def test_without_the_package_nothing_is_written(tmp_path, monkeypatch, folder_of_that_name):
    path = tmp_path / "path"
    (path / "tensorboard" if folder_of_that_name else path).mkdir(parents=True)
    monkeypatch.setattr(
        rill.train.record.tensorboard, "find_spec", lambda name: PathFinder.find_spec(name, [str(path)])
    )
    run = tmp_path / "run"
    run.mkdir()
    write_scalars(run, 0, metrics_line(1))
    assert list(run.iterdir()) == []
