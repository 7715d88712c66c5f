"""A comparison in Markdown: one table of metrics per task, and a table of costs."""

import math
import statistics
from collections.abc import Sequence

from models.compare.compare import Comparison
from models.compare.runs import Spread
from models.compare.timing import Times, ratio
from models.training.evaluate import ORACLE, Evaluation

FIGURES = {
    "auc": "AUC",
    "user_auc": "per-user AUC",
    "ndcg_10": "NDCG@10",
    "mae": "MAE",
    "mse": "MSE",
    "xauc": "XAUC",
    "calibration": "calibration",
}
EXPECTATION = "true expectation"
NOTES = """\
A cell is the mean ± the standard deviation over {seeds} seeds. A seed draws the parameters and the
order of the batches; data and split are always the same. Calibration is Σ predicted / Σ observed.
Δ is the difference to {baseline} with its 95 % interval over the seeds (Welch's t), bold if zero is
outside the interval. It does not contain the sampling error of the test set.
"""
KNOWN = """\
The true expectation is the one that the simulation used for each row. Except for sampling noise, no
model has a higher AUC; a mean absolute error can be smaller, since a median minimises it.
"""
SPACES = """\
A behaviour after a click is evaluated twice, for every network on the same rows: *given click*, on
clicked rows, where the value of ESMM is its factor pCTCVR / pCTR; and *click and*, on every row,
where the value of the other networks is the product P(click) · P(behaviour given click).
"""
COSTS = """\
Parameters do not include the {embedded} of the embedding tables. The forward pass scores one
request, scripted and frozen as in serving, with one CPU thread; the networks ran in turn. Times are
medians, with the median ratio to {baseline} in brackets.
"""


def markdown(comparison: Comparison, times: Times) -> str:
    """The document, with headings from level 3."""
    seeds = len(comparison.runs[comparison.baseline])
    parts = [NOTES.format(seeds=seeds, baseline=comparison.baseline)]
    if any(" given " in task for task in comparison.tasks):
        parts.append(SPACES)
    if any(
        figure.startswith(ORACLE) for figures in _first(comparison).values() for figure in figures
    ):
        parts.append(KNOWN)
    parts += [_task(comparison, task) for task in comparison.tasks]
    return "\n".join([*parts, _costs(comparison, times)])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def spread(value: Spread, digits: int = 4) -> str:
    """Mean ± standard deviation; the mean only for one value, a dash for none."""
    if math.isnan(value.mean):
        return "–"
    if math.isnan(value.std):
        return f"{value.mean:.{digits}f}"
    return f"{value.mean:.{digits}f} ± {value.std:.{digits}f}"


def difference(comparison: Comparison, name: str, task: str, figure: str) -> str:
    """The difference to the baseline with its 95 % interval, bold if zero is outside."""
    if name == comparison.baseline:
        return ""
    baseline = comparison.spread(comparison.baseline, task, figure)
    mean, half = comparison.spread(name, task, figure).difference(baseline)
    if math.isnan(half):
        return f"{mean:+.5f}"
    text = f"{mean:+.5f} ± {half:.5f}"
    return f"**{text}**" if abs(mean) > half else text


def _first(comparison: Comparison) -> Evaluation:
    """The metrics of one run: the names, and the values that are the same in all runs."""
    return comparison.runs[comparison.baseline][0].evaluation


def _task(comparison: Comparison, task: str) -> str:
    units = {config.name: config.unit for config in comparison.entries[0].experiment.tasks}
    evaluation = _first(comparison)[task]
    figures = [figure for figure in FIGURES if figure in evaluation]
    unit = units.get(task.split(" given ")[0], "")
    main = comparison.leading(task)
    header = [
        "network",
        *(
            FIGURES[figure] + (f" ({unit})" if figure == "mae" and unit else "")
            for figure in figures
        ),
    ]
    rows = [
        [entry.name, *(spread(comparison.spread(entry.name, task, figure)) for figure in figures)]
        for entry in comparison.entries
    ]
    if main is not None:
        header.append(f"Δ {FIGURES[main]} (95 %)")
        for entry, row in zip(comparison.entries, rows, strict=True):
            row.append(difference(comparison, entry.name, task, main))
    if any(name.startswith(ORACLE) for name in evaluation):
        names = [ORACLE + figure for figure in figures]
        cells = (f"{evaluation[name]:.4f}" if name in evaluation else "" for name in names)
        rows.append([EXPECTATION, *cells, *([""] if main is not None else [])])
    return f"### {task}\n\n{table(header, rows)}"


def _costs(comparison: Comparison, times: Times) -> str:
    counts = list(next(iter(times.values())))
    header = ["network", "parameters", *(f"forward, {n} row{'s' * (n > 1)}" for n in counts)]
    rows = []
    for entry in comparison.entries:
        cells = [f"{comparison.runs[entry.name][0].parameters:,}"]
        for count in counts:
            microseconds = 1e6 * statistics.median(times[entry.name][count])
            relative = ratio(times, entry.name, comparison.baseline, count)
            cells.append(f"{microseconds:.0f} µs ({relative:.2f}×)")
        rows.append([entry.name, *cells])
    embedded = comparison.runs[comparison.baseline][0].embedding_parameters
    note = COSTS.format(embedded=f"{embedded:,}", baseline=comparison.baseline)
    return f"### cost\n\n{note}\n{table(header, rows)}"
