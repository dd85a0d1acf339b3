"""The picture of a run, drawn from what the JSON holds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # a file, never a window

from matplotlib.figure import Figure

from rill.bench.floors import NAMES
from rill.bench.profile import ENGINE, LOOP

Found = dict[str, Any]  # as `rill.bench.report_json` makes it


def draw(found: Found, image: Path) -> None:
    """One panel for each part that was run."""
    panels: list[Callable[[Any, Found], None]] = []
    if found["floors"]:
        panels.append(_scaling)
    if found["open"]:
        panels.append(_open_loop)
    if found["profile"]:
        panels.append(_rounds)
    if found["peers"]:
        panels.append(_peers)
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(6.5 * columns, 4.5 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        panel(axes, found)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    bundle, processor = found["bundle"], found["machine"]["processor"]
    figure.suptitle(f"{bundle['name']} ({bundle['precision']}), {found['machine']['cores']} cores, {processor}")
    figure.savefig(image, dpi=120)


def _scaling(axes: Any, found: Found) -> None:
    """Characters a second by number of streams, beside the floors."""
    for name, label in NAMES.items():
        floors = [floor for floor in found["floors"] if floor["name"] == name]
        speeds = [floor["characters_per_second"] for floor in floors]
        axes.plot([floor["batch"] for floor in floors], speeds, "--", marker=".", label=f"{label}, in process")
    loads = found["loads"]
    speeds = [load["characters_per_second"] for load in loads]
    if loads:
        axes.plot([load["streams"] for load in loads], speeds, "k-", marker="o", label="over gRPC")
    axes.set(xscale="log", ylim=(0, None))
    counts = sorted({entry[key] for part, key in (("floors", "batch"), ("loads", "streams")) for entry in found[part]})
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.set(xlabel="streams, or rows of a batch", ylabel="characters/s")
    axes.grid(alpha=0.3)
    axes.legend()


def _open_loop(axes: Any, found: Found) -> None:
    """First-character latency by achieved speed."""
    for index, mix in enumerate(dict.fromkeys(rate["mix"] for rate in found["open"])):
        rates = [rate for rate in found["open"] if rate["mix"] == mix and rate["first_character_ms"]["p50"]]
        speeds = [rate["characters_per_second"] for rate in rates]
        for name, style in (("p50", "--"), ("p99", "-")):
            times = [rate["first_character_ms"][name] for rate in rates]
            axes.plot(speeds, times, style, color=f"C{index}", marker=".", label=f"{mix}, {name}")
    axes.set(yscale="log", xlim=(0, None), xlabel="characters/s", ylabel="first character, ms after it was due")
    axes.grid(alpha=0.3)
    axes.legend()


def _rounds(axes: Any, found: Found) -> None:
    """Stacked microseconds a character, of the engine's thread and of the event loop."""
    profiles = found["profile"]
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


def _peers(axes: Any, found: Found) -> None:
    """Characters a second of each peer and of Rill, at the same numbers of streams."""
    measured = [(peer["what"], peer) for peer in found["peers"]]
    streams = list(dict.fromkeys(peer["streams"] for _, peer in measured))
    measured += [("Rill", load) for load in found["loads"] if load["streams"] in streams]
    names = list(dict.fromkeys(name for name, _ in measured))
    for index, name in enumerate(names):
        bars = {load["streams"]: load["characters_per_second"] for what, load in measured if what == name}
        places = [place + 0.8 * index / len(names) for place, count in enumerate(streams) if count in bars]
        drawn = axes.bar(places, list(bars.values()), width=0.8 / len(names), label=name)
        axes.bar_label(drawn, fmt="{:,.0f}", fontsize=8)
    centre = 0.4 * (len(names) - 1) / len(names)
    axes.set_xticks([place + centre for place in range(len(streams))], [str(count) for count in streams])
    speeds = [load["characters_per_second"] for _, load in measured]
    axes.set(yscale="log", ylim=(min(speeds) / 2, max(speeds) * 8), xlabel="streams", ylabel="characters/s")
    axes.legend()
