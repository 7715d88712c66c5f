"""What weights cost: how each outcome changes on held-out requests, for many weights.

A point is a policy, placed by how much more or less of two outcomes its k best gather than the
present policy's. The staircase that no point lies beyond is the front: there, more of one outcome
costs some of the other. The plot needs matplotlib, a part of the extra `tune`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from app.tuning.goal import Gathered
from app.tuning.log import Floats
from app.tuning.policy_evaluator import PolicyEvaluator, Weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 96
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#666666"  # of Okabe and Ito


class PlotUnavailable(Exception):
    """There is no plot; the message says why."""


@dataclass(frozen=True, slots=True)
class TradeOff:
    """Tried weights, by what they change.

    Attributes:
        at: how many of the best count, k.
        changes: relative changes of each outcome, `[t]` by name; 0.1 is a tenth more.
        found: those of the weights that were found.
    """

    at: int
    changes: Mapping[str, Floats]
    found: Mapping[str, float]


def trade_off(
    judged: PolicyEvaluator,
    outcomes: Sequence[str],
    at: int,
    tries: Sequence[Weights],
    found: Weights,
) -> TradeOff:
    """Judge many weights outcome by outcome, and those that were found."""
    changes: dict[str, Floats] = {}
    for name in outcomes:
        goal = Gathered(name, at)
        now = max(float(judged.means(goal)[0]), 1e-12)
        reached = [float(judged.means(goal, each)[0]) for each in (*tries, found)]
        changes[name] = np.array(reached) / now - 1
    return TradeOff(
        at,
        {name: change[:-1] for name, change in changes.items()},
        {name: float(change[-1]) for name, change in changes.items()},
    )


def front(x: Floats, y: Floats) -> npt.NDArray[np.int64]:
    """Return the points that no other beats in both, by rising x; indices."""
    order = np.lexsort((-y, -x))  # by falling x, then by falling y
    best = np.maximum.accumulate(np.append(-np.inf, y[order]))[:-1]
    return np.asarray(order[y[order] > best][::-1], dtype=np.int64)


def save(shown: TradeOff, title: str, path: Path) -> None:
    """Draw the first outcome against each of the others, and write a PNG or SVG.

    Raises:
        PlotUnavailable: matplotlib is not installed, there is one outcome only, or the file
            cannot be written.
    """
    first, *others = shown.changes
    if not others:
        raise PlotUnavailable("one outcome has nothing to be traded for")
    figure = _figure(3.4 * len(others) + 0.4, 3.6)
    for axes, other in zip(figure.subplots(1, len(others), squeeze=False)[0], others, strict=True):
        _panel(axes, shown, first, other)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=4, fontsize=8, frameon=False)
    try:
        # A plain date would make every run's file another one.
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=DOTS_PER_INCH, metadata=metadata)
    except (OSError, ValueError) as error:
        raise PlotUnavailable(f"{path}: {error}") from error


def _panel(axes: "Axes", shown: TradeOff, first: str, other: str) -> None:
    x, y = 100 * shown.changes[first], 100 * shown.changes[other]
    axes.axhline(0, color=GREY, linewidth=0.6)
    axes.axvline(0, color=GREY, linewidth=0.6)
    axes.plot(x, y, ".", color=GREY, alpha=0.35, markersize=4, label="tried")
    edge = front(x, y)
    axes.plot(x[edge], y[edge], "-", color=BLUE, linewidth=1.4, label="front")
    axes.plot(0, 0, "o", color="black", markersize=7, label="before")
    at = 100 * shown.found[first], 100 * shown.found[other]
    axes.plot(*at, "D", color=VERMILION, markersize=7, label="after")
    axes.set_xlabel(f"{first} in the best {shown.at}, change in %", fontsize=9)
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
