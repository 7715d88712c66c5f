import math

from models.compare import tables
from models.compare.runs import Spread
from tests.models.comparisons import made_up

TIMES = {
    "Single-task": {1: [1e-4, 1e-4, 9e-4], 256: [1e-3, 1e-3, 1e-3]},
    "MMoE": {1: [2e-4, 2e-4, 18e-4], 256: [1.5e-3, 1.5e-3, 1.6e-3]},
}
FIGURES = {
    "single_task": [
        {"click": {"auc": 0.70, "oracle_auc": 0.9}, "dwell": {"mae": 7.0, "xauc": 0.6}},
        {"click": {"auc": 0.72, "oracle_auc": 0.9}, "dwell": {"mae": 9.0, "xauc": 0.6}},
    ],
    "mmoe": [
        {"click": {"auc": 0.75, "oracle_auc": 0.9}, "dwell": {"mae": 7.0, "xauc": 0.5}},
        {"click": {"auc": 0.75, "oracle_auc": 0.9}, "dwell": {"mae": 7.5}},
    ],
}


def rows(text: str, heading: str) -> list[list[str]]:
    section = text.split(f"### {heading}\n")[1].split("###")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_task_has_mean_and_deviation_of_every_network_and_the_true_expectation(tmp_path):
    text = tables.markdown(made_up(tmp_path, FIGURES), TIMES)

    assert rows(text, "click") == [
        ["network", "AUC", "Δ AUC (95 %)"],
        ["---", "---:", "---:"],
        ["Single-task", "0.7100 ± 0.0141", ""],
        ["MMoE", "0.7500 ± 0.0000", "+0.04000 ± 0.12706"],
        ["true expectation", "0.9000", ""],
    ]
    assert rows(text, "dwell") == [
        ["network", "MAE (seconds)", "XAUC", "Δ XAUC (95 %)"],
        ["---", "---:", "---:", "---:"],
        ["Single-task", "8.0000 ± 1.4142", "0.6000 ± 0.0000", ""],
        ["MMoE", "7.2500 ± 0.3536", "0.5000", "-0.10000"],
    ]
    assert "over 2 seeds" in text


def test_difference_beyond_the_scatter_of_the_seeds_is_bold(tmp_path):
    figures = {
        "single_task": [{"click": {"auc": auc}} for auc in (0.70, 0.702, 0.701)],
        "mmoe": [{"click": {"auc": auc}} for auc in (0.71, 0.712, 0.711)],
    }

    text = tables.markdown(made_up(tmp_path, figures), TIMES)

    assert rows(text, "click")[-1][-1] == "**+0.01000 ± 0.00227**"


def test_costs_are_medians_with_the_ratio_to_the_baseline(tmp_path):
    text = tables.markdown(made_up(tmp_path, FIGURES), TIMES)

    assert rows(text, "cost") == [
        ["network", "parameters", "forward, 1 row", "forward, 256 rows"],
        ["---", "---:", "---:", "---:"],
        ["Single-task", "1,234", "100 µs (1.00×)", "1000 µs (1.00×)"],
        ["MMoE", "1,234", "200 µs (2.00×)", "1500 µs (1.50×)"],
    ]
    assert "do not include the 56 of the embedding tables" in text


def test_sample_spaces_are_explained_if_there_are_any(tmp_path):
    both = {"like given click": {"auc": 0.7}, "click and like": {"auc": 0.8}}

    told = tables.markdown(made_up(tmp_path, {"single_task": [both, both]}), TIMES)
    untold = tables.markdown(made_up(tmp_path, FIGURES), TIMES)

    assert "pCTCVR / pCTR" in told
    assert "pCTCVR" not in untold


def test_undefined_metric_is_a_dash():
    assert tables.spread(Spread(math.nan, math.nan)) == "–"
    assert tables.spread(Spread(0.5, math.nan), 2) == "0.50"
