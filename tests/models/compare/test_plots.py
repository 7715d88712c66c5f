import itertools
import sys

import pytest

from models.compare import plots
from models.compare.correlation import Sweep
from tests.models.comparisons import made_up

FIGURES = {
    "single_task": [
        {"click": {"auc": 0.70}, "y": {"mse": 4.0}},
        {"click": {"auc": 0.72}, "y": {"mse": 6.0}},
    ],
    "mmoe": [
        {"click": {"auc": 0.75}, "y": {"mse": 7.0}},
        {"click": {"auc": 0.73}, "y": {"mse": 9.0}},
    ],
}
SWEEP = Sweep(
    {
        "Shared-Bottom": {0.0: [2.0, 4.0], 1.0: [1.0, 1.0]},
        "MMoE": {0.0: [1.0, 3.0], 1.0: [1.0, 0.5]},
    }
)


@pytest.fixture(autouse=True)
def matplotlib():
    return pytest.importorskip("matplotlib")


def drawn(axes):
    """Mean and half width of each error bar."""
    found = []
    for container in axes.containers:
        line, _, (bars,) = container.lines
        (start, end) = bars.get_segments()[0]
        found.append((line.get_xdata()[0], (end[0] - start[0]) / 2))
    return found


def line_of(container):
    return container.lines[0]


def test_gains_are_drawn_with_their_deviation(tmp_path):
    figure = plots.gains(made_up(tmp_path, FIGURES))

    click, y = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["click", "y"]
    assert [label.get_text() for label in click.get_yticklabels()] == ["Single-task", "MMoE"]
    expected = [(0, 100 * 0.02 / 2**0.5), (3.0, 100 * 0.02 / 2**0.5)]
    for pair, (mean, deviation) in zip(drawn(click), expected, strict=True):
        assert pair == pytest.approx((mean, deviation))
    assert drawn(y)[1] == pytest.approx((-3.0, 2**0.5))  # a larger error is a loss


def test_tasks_of_one_unit_share_a_scale(tmp_path):
    same = {
        name: [{"a": evaluation["click"], "b": evaluation["click"]} for evaluation in evaluations]
        for name, evaluations in FIGURES.items()
    }

    a, b = plots.gains(made_up(tmp_path, same)).axes
    click, y = plots.gains(made_up(tmp_path, FIGURES)).axes

    assert a.get_shared_x_axes().joined(a, b)
    assert not click.get_shared_x_axes().joined(click, y)


def test_losses_are_drawn_by_correlation_and_beside_them_the_ratios():
    left, right = plots.correlation(SWEEP).axes

    heights = {text.get_text(): text.get_position()[1] for text in left.texts}
    assert heights.keys() == {"Shared-Bottom", "MMoE"}
    assert heights["Shared-Bottom"] - heights["MMoE"] >= plots.LINE_OF_TEXT
    lines = [line_of(container) for container in left.containers]
    assert [list(line.get_xdata()) for line in lines] == [[0.0, 1.0]] * 2
    assert [list(line.get_ydata()) for line in lines] == [[3.0, 1.0], [2.0, 0.75]]
    (ratios,) = (line_of(container) for container in right.containers)
    assert list(ratios.get_ydata()) == [0.625, 0.75]
    assert ratios.get_color() == lines[1].get_color()


def test_every_network_of_many_has_a_line():
    by_p = {0.0: [1.0, 2.0], 1.0: [1.0, 1.0]}

    left, _ = plots.correlation(Sweep({f"network {i}": by_p for i in range(8)})).axes

    assert len(left.containers) == 8
    heights = sorted(text.get_position()[1] for text in left.texts)
    assert min(b - a for a, b in itertools.pairwise(heights)) >= plots.LINE_OF_TEXT * 0.999


def test_figure_is_saved_as_png(tmp_path):
    plots.save(plots.gains(made_up(tmp_path, FIGURES)), tmp_path / "gains.png")
    plots.save(plots.correlation(SWEEP), tmp_path / "correlation.png")

    for name in ("gains.png", "correlation.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_missing_matplotlib_is_reported_with_its_install_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)

    with pytest.raises(
        plots.PlotsUnavailable, match=r"matplotlib is not installed: pip install -e '\.\[plots\]'"
    ):
        plots.gains(made_up(tmp_path, FIGURES))
