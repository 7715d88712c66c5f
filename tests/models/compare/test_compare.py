import io

import pytest
from rich.console import Console

from models.compare import compare
from models.training.experiment import ExperimentInvalid
from tests.models.comparisons import TINY, made_up, tiny_files

FIGURES = {
    "mmoe": [
        {"click": {"auc": 0.70, "user_auc": 0.6}, "y": {"mse": 3.0}},
        {"click": {"auc": 0.74, "user_auc": 0.6}, "y": {"mse": 1.0}},
    ],
    "single_task": [
        {"click": {"auc": 0.71, "user_auc": 0.7}, "y": {"mse": 4.0}},
        {"click": {"auc": 0.69, "user_auc": 0.7}, "y": {"mse": 6.0}},
    ],
}


def test_networks_stand_in_order_from_simple_to_rich(tmp_path):
    paths = tiny_files(tmp_path, "esmm", "ple", "cgc", "mmoe", "moe", "shared_bottom")

    assert [entry.name for entry in compare.read(paths)] == [
        *("Shared-Bottom", "MoE", "MMoE", "CGC", "PLE", "ESMM")
    ]


def test_every_architecture_has_a_configuration_to_compare():
    entries = compare.read(compare.CONFIGS)

    assert [entry.name for entry in entries] == list(compare.TITLES.values())


def test_same_architecture_is_named_by_its_file(tmp_path):
    (small,) = tiny_files(tmp_path, "mmoe")
    large = tmp_path / "large.toml"
    large.write_text(small.read_text().replace("[8, 4]", "[16, 8]"))

    names = [entry.name for entry in compare.read([small, large])]

    assert names == ["MMoE (mmoe)", "MMoE (large)"]
    with pytest.raises(ExperimentInvalid, match=r"mmoe\.toml: given twice"):
        compare.read([small, small])


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("data", ("users = 60", "users = 61")),
        ("tasks", ("weight = 0.05", "weight = 0.06")),
        ("embedding", ("dim = 4", "dim = 5")),
        ("clamp", ("[0, 600]", "[0, 60]")),
    ],
)
def test_experiments_with_other_data_are_not_compared(tmp_path, field, changed):
    first = tiny_files(tmp_path, "ple")
    other = tiny_files(tmp_path, "mmoe", text=TINY.replace(*changed))

    with pytest.raises(
        ExperimentInvalid, match=rf"mmoe\.toml: \[{field}\] differs from .*ple\.toml"
    ):
        compare.read(first + other)


def test_gains_are_over_the_mean_of_single_task(tmp_path):
    comparison = made_up(tmp_path, FIGURES)

    assert comparison.baseline == "Single-task"
    assert comparison.gains("MMoE", "click") == pytest.approx([0.0, 0.04])
    assert comparison.gains("Single-task", "click") == pytest.approx([0.01, -0.01])
    assert comparison.gains("MMoE", "y") == pytest.approx([2.0, 4.0])  # a smaller error is a gain
    assert comparison.spread("MMoE", "click", "auc").mean == pytest.approx(0.72)
    assert comparison.spread("MMoE", "click", "auc").std == pytest.approx(0.04 / 2**0.5)


def test_without_single_task_the_first_is_the_baseline(tmp_path):
    comparison = made_up(tmp_path, {"ple": FIGURES["mmoe"], "mmoe": FIGURES["single_task"]})

    assert comparison.baseline == "MMoE"


def test_every_network_is_run_with_every_seed_on_the_same_data(tmp_path):
    entries = compare.read(tiny_files(tmp_path, "mmoe", "esmm"))

    comparison = compare.run(entries, 2, tmp_path, Console(file=io.StringIO()))

    runs = comparison.runs
    assert [(name, run.name, run.seed) for name in runs for run in runs[name]] == [
        *(("MMoE", "MMoE", 0), ("MMoE", "MMoE", 1)),
        *(("ESMM", "ESMM", 0), ("ESMM", "ESMM", 1)),
    ]
    first, second = runs["MMoE"]
    assert first.evaluation["click"]["auc"] != second.evaluation["click"]["auc"]
    oracles = {run.evaluation["click"]["oracle_auc"] for group in runs.values() for run in group}
    assert len(oracles) == 1
