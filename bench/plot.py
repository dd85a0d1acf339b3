"""The plot of a run, drawn from its JSON document."""

from collections.abc import Callable
from typing import Any, BinaryIO

import matplotlib

matplotlib.use("Agg")  # a file, never a window

from matplotlib.figure import Figure

from rill.bench.floors import NAMES
from rill.bench.profile import ENGINE, LOOP

Document = dict[str, Any]  # as `rill.bench.report_json` makes it


def draw(document: Document, image: BinaryIO, kind: str) -> None:
    """Draw a panel for each part that was run; `kind` is png, svg or pdf."""
    panels: list[Callable[[Any, Document], None]] = []
    if document["floors"]:
        panels.append(_scaling)
    if document["open"]:
        panels.append(_open_loop)
    if document["profile"]:
        panels.append(_rounds)
    if document["peers"]:
        panels.append(_peers)
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(6.5 * columns, 4.5 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        panel(axes, document)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    bundle, processor = document["bundle"], document["machine"]["processor"]
    figure.suptitle(f"{bundle['name']} ({bundle['precision']}), {document['machine']['cores']} cores, {processor}")
    figure.savefig(image, format=kind, dpi=120)


def _scaling(axes: Any, document: Document) -> None:
    """Plot characters a second by number of streams, beside the floors."""
    for name, label in NAMES.items():
        floors = [floor for floor in document["floors"] if floor["name"] == name]
        speeds = [floor["characters_per_second"] for floor in floors]
        axes.plot([floor["batch"] for floor in floors], speeds, "--", marker=".", label=f"{label}, in process")
    loads = document["loads"]
    speeds = [load["characters_per_second"] for load in loads]
    if loads:
        axes.plot([load["streams"] for load in loads], speeds, "k-", marker="o", label="over gRPC")
    axes.set(xscale="log", ylim=(0, None))
    counts = sorted({floor["batch"] for floor in document["floors"]} | {load["streams"] for load in loads})
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.set(xlabel="streams, or rows of a batch", ylabel="characters/s")
    axes.grid(alpha=0.3)
    axes.legend()


def _open_loop(axes: Any, document: Document) -> None:
    """Plot first-character latency by achieved speed."""
    for index, mix in enumerate(dict.fromkeys(rate["mix"] for rate in document["open"])):
        rates = [rate for rate in document["open"] if rate["mix"] == mix and rate["first_character_ms"]["p50"]]
        speeds = [rate["characters_per_second"] for rate in rates]
        for name, style in (("p50", "--"), ("p99", "-")):
            times = [rate["first_character_ms"][name] for rate in rates]
            axes.plot(speeds, times, style, color=f"C{index}", marker=".", label=f"{mix}, {name}")
    axes.set(yscale="log", xlim=(0, None), xlabel="characters/s", ylabel="first character, ms after it was due")
    axes.grid(alpha=0.3)
    axes.legend()


def _rounds(axes: Any, document: Document) -> None:
    """Stack microseconds a character, of the engine's thread and of the event loop."""
    profiles = document["profile"]
    labels = [f"{profile['streams']}\n{thread}" for profile in profiles for thread in ("engine", "event loop")]
    below = [0.0] * len(labels)
    for stage in ENGINE + LOOP:
        heights = []
        for profile in profiles:
            value = profile["us_per_character"][stage]
            heights += [value, 0.0] if stage in ENGINE else [0.0, value]
        axes.bar(labels, heights, bottom=below, label=stage.replace("_", " "))
        below = [under + height for under, height in zip(below, heights, strict=True)]
    axes.set(xlabel="streams", ylabel="µs a character")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def _peers(axes: Any, document: Document) -> None:
    """Compare characters a second of each peer and of Rill, at the same numbers of streams."""
    measured = [(peer["what"], peer) for peer in document["peers"]]
    streams = list(dict.fromkeys(peer["streams"] for _, peer in measured))
    measured += [("Rill", load) for load in document["loads"] if load["streams"] in streams]
    names = list(dict.fromkeys(name for name, _ in measured))
    for index, name in enumerate(names):
        bars = {load["streams"]: load["characters_per_second"] for what, load in measured if what == name}
        positions = [position + 0.8 * index / len(names) for position, count in enumerate(streams) if count in bars]
        drawn = axes.bar(positions, list(bars.values()), width=0.8 / len(names), label=name)
        axes.bar_label(drawn, fmt="{:,.0f}", fontsize=8)
    centre = 0.4 * (len(names) - 1) / len(names)
    axes.set_xticks([position + centre for position in range(len(streams))], [str(count) for count in streams])
    speeds = [load["characters_per_second"] for _, load in measured]
    axes.set(yscale="log", ylim=(min(speeds) / 2, max(speeds) * 8), xlabel="streams", ylabel="characters/s")
    axes.legend()
