"""The trade-off between outcomes: how each of them changes on held-out requests, for many weights.

In the plot, a point is a policy. Its coordinates are the relative changes of two outcomes among its
k best candidates, compared with the present policy. The front joins the points that no other point
beats in both outcomes: on it, more of one outcome costs some of the other. The plot needs
matplotlib, which is in the extra `tune`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from app.errors import TuningError
from app.tuning.goal import MeanOutcome
from app.tuning.log import Floats
from app.tuning.policy_evaluator import PolicyEvaluator, Weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 96
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#666666"  # colour-blind safe: Okabe and Ito, 2008


class PlotUnavailable(TuningError):
    """No plot was written. The message says why."""


@dataclass(frozen=True, slots=True)
class TradeOff:
    """How much many weights change each outcome.

    Attributes:
        k: how many of the best candidates of a request count.
        changes: relative change of each outcome, `[t]` by name; 0.1 is 10 % more.
        found: the same for the weights that the search found.
    """

    k: int
    changes: Mapping[str, Floats]
    found: Mapping[str, float]


def trade_off(
    evaluator: PolicyEvaluator,
    outcomes: Sequence[str],
    k: int,
    tried: Sequence[Weights],
    found: Weights,
) -> TradeOff:
    """Evaluate many weights outcome by outcome, and the weights that the search found."""
    changes: dict[str, Floats] = {}
    for name in outcomes:
        goal = MeanOutcome(name, k)
        present = max(float(evaluator.means(goal)[0]), 1e-12)
        reached = [float(evaluator.means(goal, candidate)[0]) for candidate in (*tried, found)]
        changes[name] = np.array(reached) / present - 1
    return TradeOff(
        k,
        {name: change[:-1] for name, change in changes.items()},
        {name: float(change[-1]) for name, change in changes.items()},
    )


def front(x: Floats, y: Floats) -> npt.NDArray[np.int64]:
    """Return the indices of the points that no other point beats in both, by ascending x."""
    order = np.lexsort((-y, -x))  # by descending x, then by descending y
    best = np.maximum.accumulate(np.append(-np.inf, y[order]))[:-1]
    return np.asarray(order[y[order] > best][::-1], dtype=np.int64)


def save_plot(points: TradeOff, title: str, path: Path) -> None:
    """Plot the first outcome against each of the others, and write a PNG or SVG file.

    Raises:
        PlotUnavailable: matplotlib is not installed, there is only one outcome, or the file
            cannot be written.
    """
    first, *others = points.changes
    if not others:
        raise PlotUnavailable("a trade-off needs at least two outcomes")
    figure = _figure(3.4 * len(others) + 0.4, 3.6)
    for axes, other in zip(figure.subplots(1, len(others), squeeze=False)[0], others, strict=True):
        _panel(axes, points, first, other)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=4, fontsize=8, frameon=False)
    try:
        # By default an SVG contains the date; the same data should give the same file.
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=DOTS_PER_INCH, metadata=metadata)
    except (OSError, ValueError) as error:
        raise PlotUnavailable(f"{path}: {error}") from error


def _panel(axes: "Axes", points: TradeOff, first: str, other: str) -> None:
    x, y = 100 * points.changes[first], 100 * points.changes[other]
    axes.axhline(0, color=GREY, linewidth=0.6)
    axes.axvline(0, color=GREY, linewidth=0.6)
    axes.plot(x, y, ".", color=GREY, alpha=0.35, markersize=4, label="tried")
    edge = front(x, y)
    axes.plot(x[edge], y[edge], "-", color=BLUE, linewidth=1.4, label="front")
    axes.plot(0, 0, "o", color="black", markersize=7, label="before")
    after = 100 * points.found[first], 100 * points.found[other]
    axes.plot(*after, "D", color=VERMILION, markersize=7, label="after")
    axes.set_xlabel(f"{first} in the best {points.k}, change in %", fontsize=9)
    axes.set_ylabel(f"{other}, change in %", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.locator_params(nbins=6)


def _figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise PlotUnavailable(
            "matplotlib is not installed, so there is no plot: pip install -e '.[tune]'"
        ) from None
    return Figure(figsize=(width, height), layout="constrained")
