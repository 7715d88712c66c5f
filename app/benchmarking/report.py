"""A benchmark as a picture, or as one self-contained HTML page."""

import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from app.benchmarking.load import Report
from app.benchmarking.objective import Objective, Step, highest
from app.errors import TuningError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUANTILES = (0.5, 0.9, 0.99, 0.999)
_CURVES = 5
_WINDOWS = 100  # points of the latency over time
_STYLE = """\
body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{white-space:nowrap;border-bottom:1px solid #8884;padding:.3rem .8rem;text-align:right}
svg{max-width:100%;height:auto;background:#fff}
@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}}"""


def write_report(
    path: Path,
    title: str,
    rows: Sequence[Sequence[str]],
    steps: Sequence[Step],
    limit: Objective,
    caption: str,
) -> None:
    """Write the report to a file.

    Args:
        path: ends in .html, .png or .svg.
        title: the first line.
        rows: a table of text; the first row is its head.
        steps: the measurements, in order; one, or those of a sweep.
        limit: the objective.
        caption: the units of the table.

    Raises:
        TuningError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise TuningError("a report needs matplotlib: pip install -e '.[plots]'") from None
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gatehouse"}):
        figure = Figure(figsize=(10, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        _plot_quantiles(left, steps, limit)
        if len({step.rate for step in steps}) > 1:
            _plot_sweep(right, steps, limit)
        else:
            _plot_time(right, steps[-1].report, limit)
        if path.suffix != ".html":
            figure.savefig(path, dpi=150)
            return
        path.write_text(_page(title, rows, caption, _svg(figure)), encoding="utf-8")


def _plot_quantiles(axes: Any, steps: Sequence[Step], limit: Objective) -> None:  # noqa: ANN401
    """Draw the latency by quantile, of the highest rates; the axis stretches the tail."""
    shares = 1 - np.logspace(0, -4, 200)
    best = highest(list(steps)) or steps[-1]
    chosen = list({step.rate: step for step in (*steps, best)}.values())
    chosen.sort(key=lambda step: abs(np.log(step.rate / best.rate)))
    for step in sorted(chosen[:_CURVES], key=lambda step: step.rate):
        latencies = step.report.latency_s[step.report.status == 200]
        known = shares[shares <= 1 - 1 / max(2, len(latencies))]
        if len(latencies):
            quantiles = np.quantile(latencies, known) * 1e3
            axes.plot(1 / (1 - known), quantiles, label=f"{step.rate:,.0f}/s")
    axes.set(xscale="log", yscale="log", title="Latency by quantile (ms)", xlabel="quantile")
    axes.set_xticks([1, 10, 100, 1000, 10_000], ["0", "90 %", "99 %", "99.9 %", "99.99 %"])
    _draw_limit(axes, limit)
    axes.legend(frameon=False)


def _plot_sweep(axes: Any, steps: Sequence[Step], limit: Objective) -> None:  # noqa: ANN401
    for share in (0.5, 0.99):
        by_rate = sorted((step.rate, step.report.latency_ms(share)) for step in steps)
        axes.plot(*zip(*by_rate, strict=True), marker="o", label=f"p{share * 100:g}")
    axes.set(xscale="log", yscale="log", title="Latency by rate (ms)", xlabel="requests/s")
    best = highest(list(steps))
    if best is not None:
        axes.axvline(best.rate, color="grey", linestyle=":")
    _draw_limit(axes, limit)
    axes.legend(frameon=False)


def _plot_time(axes: Any, report: Report, limit: Objective) -> None:  # noqa: ANN401
    edges = np.linspace(0, report.seconds, _WINDOWS + 1)
    window = np.clip(np.digitize(report.due_s, edges) - 1, 0, _WINDOWS - 1)
    accepted = report.status == 200
    for share in (0.5, 0.99):
        points = [
            (edges[number], np.quantile(report.latency_s[chosen], share) * 1e3)
            for number in range(_WINDOWS)
            if (chosen := accepted & (window == number)).any()
        ]
        if points:
            axes.plot(*zip(*points, strict=True), label=f"p{share * 100:g}")
    axes.set(title="Latency over time (ms)", xlabel="seconds", ylim=(0, None))
    _draw_limit(axes, limit)
    axes.legend(frameon=False)


def _draw_limit(axes: Any, limit: Objective) -> None:  # noqa: ANN401
    if limit.p99_ms is not None:
        axes.axhline(limit.p99_ms, color="grey", linestyle=":")


def _svg(figure: "Figure") -> str:
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue().partition("<svg")[2]


def _page(title: str, rows: Sequence[Sequence[str]], caption: str, svg: str) -> str:
    head, *body = [[html.escape(cell) for cell in row] for row in rows]
    table = "".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>\n" for row in body)
    name = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f"<body><h1>{name}</h1>\n<svg{svg}\n"
        f"<table><tr><th>{'</th><th>'.join(head)}</th></tr>\n{table}</table><p>{html.escape(caption)}</p></body></html>\n"
    )
