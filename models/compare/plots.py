"""Plots of comparisons, as PNG files; they need matplotlib, the extra `plots`.

The colours are those of Okabe and Ito, safe for colour-blind readers; shape or position always
carries the same information as colour.
"""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models.compare.compare import Comparison
from models.compare.correlation import Sweep
from models.compare.figures import LEADING
from models.compare.runs import Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#666666"
GREEN, PURPLE, SKY = "#009E73", "#CC79A7", "#56B4E9"
DOTS_PER_INCH = 96
PERCENT = 100  # AUC and XAUC are shares of pairs
LINE_OF_TEXT = 0.06  # of the height of an axes
SHARES = ("auc", "xauc")

STYLES = ((GREY, "o"), (VERMILION, "s"), (BLUE, "D"), (GREEN, "^"), (PURPLE, "v"), (SKY, "P"))
"""Colour and marker of a line."""

Style = tuple[str, str]
ByCorrelation = Mapping[float, Sequence[float]]


class PlotsUnavailable(Exception):
    """Matplotlib is not installed."""


def gains(comparison: Comparison) -> "Figure":
    """Draw the gain of each network over the baseline, one panel per task.

    A network that is right of zero in one panel and left of it in another shows a see-saw.

    Raises:
        PlotsUnavailable: matplotlib is not installed.
    """
    tasks = [task for task in comparison.tasks if comparison.leading(task) is not None]
    names = [entry.name for entry in comparison.entries]
    figure = _figure(2.0 + 2.1 * len(tasks), 1.5 + 0.36 * len(names))
    share = all(
        comparison.leading(task) in SHARES for task in tasks
    )  # the same unit, so the same scale
    grid = figure.subplots(1, len(tasks), sharey=True, squeeze=False, sharex=share)[0]
    for axes, task in zip(grid, tasks, strict=True):
        _gain_panel(axes, comparison, task, names)
    grid[0].set_yticks(range(len(names)), names)
    grid[0].set_ylim(len(names) - 0.5, -0.5)
    seeds = len(comparison.runs[comparison.baseline])
    figure.suptitle(
        f"Gain over {comparison.baseline}; further right is better", x=0.01, ha="left", fontsize=11
    )
    figure.supxlabel(
        f"Large dot and bar: mean ± standard deviation over {seeds} seeds; small dots: the seeds; "
        f"band: ± standard deviation of {comparison.baseline}",
        x=0.01,
        ha="left",
        fontsize=8,
        color=GREY,
    )
    return figure


def correlation(sweep: Sweep) -> "Figure":
    """Draw losses by task correlation, one line per network, and next to it the ratios.

    Raises:
        PlotsUnavailable: matplotlib is not installed.
    """
    figure = _figure(9.2, 4.0)
    left, right = figure.subplots(1, 2)
    styles = dict(zip(sweep.losses, itertools.cycle(STYLES), strict=False))
    _lines(left, sweep.losses, styles)
    left.set_title("Mean squared error on the test set", loc="left", fontsize=10)
    ratios = {
        name: {p: sweep.ratios(name, p) for p in by_p}
        for name, by_p in sweep.losses.items()
        if name != sweep.baseline
    }
    _lines(right, ratios, styles)
    right.axhline(1, color=styles[sweep.baseline][0], linewidth=1.5)
    right.set_title(f"Ratio to {sweep.baseline}", loc="left", fontsize=10)
    figure.suptitle(
        "Loss by task correlation: lower is better; bars: ± standard error over the seeds",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    return figure


def save(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG."""
    figure.savefig(path, format="png", dpi=DOTS_PER_INCH, pil_kwargs={"optimize": True})


def _lines(axes: "Axes", losses: Mapping[str, ByCorrelation], styles: Mapping[str, Style]) -> None:
    """Draw one line per network, with its name at the end."""
    ends: dict[str, float] = {}
    for name, by_p in losses.items():
        colour, marker = styles[name]
        x = list(by_p)
        spreads = [Spread.of(values) for values in by_p.values()]
        means = [spread.mean for spread in spreads]
        counts = [len(values) for values in by_p.values()]
        errors = [
            spread.std / math.sqrt(count) for spread, count in zip(spreads, counts, strict=True)
        ]
        axes.errorbar(x, means, errors, color=colour, marker=marker, markersize=6, capsize=3)
        axes.set_xticks(x)
        ends[name] = means[-1]
    axes.set_xlabel("task correlation p, the cosine of the tasks' weights", fontsize=9)
    axes.set_ylim(bottom=0)
    _plain(axes)
    _name(axes, ends, styles)


def _name(axes: "Axes", ends: Mapping[str, float], styles: Mapping[str, Style]) -> None:
    """Write each name at the end of its line, at least one line of text apart."""
    bottom, top = axes.get_ylim()
    lowest = -math.inf
    for name, end in sorted(ends.items(), key=lambda named_end: named_end[1]):
        lowest = max((end - bottom) / (top - bottom), lowest + LINE_OF_TEXT)
        axes.annotate(
            name,
            (1.03, lowest),
            xycoords="axes fraction",
            color=styles[name][0],
            va="center",
            annotation_clip=False,
        )


def _gain_panel(axes: "Axes", comparison: Comparison, task: str, names: Sequence[str]) -> None:
    """Draw one task: one row per network, the spread of the baseline as a band around zero."""
    figure = comparison.leading(task)
    assert figure is not None
    scale = PERCENT if figure in SHARES else 1
    band = scale * comparison.spread(comparison.baseline, task, figure).std
    axes.axvspan(-band, band, color="#EEEEEE", linewidth=0)
    axes.axvline(0, color=GREY, linewidth=0.8)
    for row, name in enumerate(names):
        values = [scale * gain for gain in comparison.gains(name, task)]
        colour = GREY if name == comparison.baseline else BLUE
        if name != comparison.baseline and statistics.fmean(values) < 0:
            colour = VERMILION
        beneath = [row + 0.25] * len(values)
        axes.plot(values, beneath, "o", color=colour, alpha=0.5, markersize=3, linewidth=0)
        spread = Spread.of(values)
        axes.errorbar(
            spread.mean, row, xerr=spread.std, fmt="o", color=colour, markersize=6, capsize=3
        )
    unit = (
        f"{LEADING[figure]}, hundredths" if figure in SHARES else f"reduction of {LEADING[figure]}"
    )
    axes.set_title(task, loc="left", fontsize=10)
    axes.set_xlabel(unit, fontsize=9)
    axes.locator_params(axis="x", nbins=5)
    _plain(axes)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _plain(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def _figure(width: float, height: float) -> "Figure":
    """Create an empty figure; width and height in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotsUnavailable(
            "no plot: matplotlib is not installed: pip install -e '.[plots]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")
