import io

import pytest
from rich.console import Console

from models.compare import compare, correlation
from models.compare.correlation import Sweep
from models.data import SyntheticConfig
from models.training.experiment import ExperimentInvalid
from tests.models.comparisons import a_run, tiny_files

SWEEP = Sweep(
    {
        "Shared-Bottom": {0.0: [2.0, 4.0], 1.0: [1.0, 1.0]},
        "MMoE": {0.0: [1.0, 3.0], 1.0: [1.0, 0.5]},
    }
)


@pytest.fixture(scope="module")
def entries():
    read = compare.read(correlation.CONFIGS)
    small = []
    for entry in read:
        settings = entry.experiment
        training = settings.training.model_copy(update={"epochs": 2})
        data = settings.data.model_copy(update={"rows": 400, "dim": 6})
        changed = settings.model_copy(update={"training": training, "data": data})
        small.append(compare.Entry(entry.name, changed))
    return small


def test_the_papers_networks_are_of_one_size():
    read = compare.read(correlation.CONFIGS)

    assert [entry.name for entry in read] == ["Shared-Bottom", "MoE", "MMoE"]
    bottom, moe, mmoe = (entry.experiment.network for entry in read)
    weights = 100 * 16 * 8 + 16 * 8 * 2  # section 3.3
    assert bottom.expert_hidden_units == (round(weights / (100 + 8 * 2)),)
    assert moe.expert_hidden_units == mmoe.expert_hidden_units == (16,)
    assert moe.num_experts == mmoe.num_experts == 8


def test_every_network_learns_every_correlation_from_the_same_draw(entries, tmp_path):
    console = Console(file=io.StringIO(), width=200)

    swept = correlation.run(entries, 2, tmp_path, console, correlations=(0.0, 1.0))
    again = correlation.run(entries, 2, tmp_path, console, correlations=(1.0,))

    assert swept.baseline == "Shared-Bottom"
    for by_p in swept.losses.values():
        assert {p: len(losses) for p, losses in by_p.items()} == {0.0: 2, 1.0: 2}
        assert len({loss for losses in by_p.values() for loss in losses}) == 4
    assert again.losses["MMoE"][1.0] == swept.losses["MMoE"][1.0]
    assert "6 of 6 runs are already done" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "MMoE, p = 0, seed 1" in console.file.getvalue()  # type: ignore[attr-defined]


def test_seed_draws_data_and_parameters(entries):
    settings = correlation.correlated(entries[0].experiment, 0.5, seed=3)

    assert isinstance(settings.data, SyntheticConfig)
    assert (settings.data.correlation, settings.data.seed, settings.training.seed) == (0.5, 3, 3)
    assert settings.data.rows == 400


def test_sweep_of_a_feed_is_refused(tmp_path):
    entries = compare.read(tiny_files(tmp_path, "ple"))

    with pytest.raises(ExperimentInvalid, match='must be "synthetic" for a sweep'):
        correlation.run(entries, 2, tmp_path, Console(file=io.StringIO()))


def test_the_loss_is_the_mean_over_the_tasks():
    assert correlation.loss(a_run(0, {"y1": {"mse": 1.0}, "y2": {"mse": 4.0}})) == 2.5


def test_ratios_are_taken_within_a_seed():
    assert SWEEP.ratios("MMoE", 0.0) == [0.5, 0.75]
    assert SWEEP.ratios("Shared-Bottom", 0.0) == [1.0, 1.0]


def test_the_tables_hold_losses_and_ratios():
    lines = correlation.markdown(SWEEP).splitlines()

    assert "| network | p = 0 | p = 1 |" in lines
    assert "| Shared-Bottom | 3.000 ± 1.414 | 1.000 ± 0.000 |" in lines
    assert "| MMoE | 2.000 ± 1.414 | 0.750 ± 0.354 |" in lines
    assert "| MMoE | 0.62 ± 0.18 | 0.75 ± 0.35 |" in lines
