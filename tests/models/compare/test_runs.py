import math

import numpy as np
import pytest

from models.compare import compare
from models.compare.runs import RunStore, Spread, digest, t_quantile
from models.training import experiment
from models.training.experiment import ExperimentInvalid
from tests import TINY_EXPERIMENT
from tests.models.comparisons import a_run


@pytest.fixture(scope="module")
def tiny():
    return experiment.read(TINY_EXPERIMENT)


def test_spread_is_the_naive_mean_and_sample_deviation():
    values = np.array([0.1, 0.25, 0.7, -0.3])

    spread = Spread.of([*values, math.nan])

    assert spread.mean == pytest.approx(np.mean(values))
    assert spread.std == pytest.approx(np.sqrt(np.sum((values - values.mean()) ** 2) / 3))


def test_too_few_values_have_no_spread():
    assert Spread.of([2.0]).mean == 2.0
    assert math.isnan(Spread.of([2.0]).std)
    assert math.isnan(Spread.of([]).mean)


def test_run_is_found_after_the_file_is_opened_again(tiny, tmp_path):
    path = tmp_path / "new" / "runs.jsonl"
    run = a_run(0, {"click": {"auc": 0.75}}, digest=digest(tiny))
    RunStore(path).add(run)

    assert RunStore(path).find(tiny) == run
    assert RunStore(path).find(compare.seeded(tiny, 1)) is None


def test_half_written_last_line_is_cut_off(tiny, tmp_path):
    path = tmp_path / "runs.jsonl"
    whole, lost = (a_run(seed, {}, digest=f"{seed}") for seed in range(2))
    RunStore(path).add(whole)
    with path.open("a") as file:
        file.write(lost.model_dump_json()[:40])

    RunStore(path).add(lost.model_copy(update={"digest": digest(tiny)}))

    assert len(path.read_text().splitlines()) == 2
    assert RunStore(path).find(tiny) is not None


def test_line_that_is_no_run_is_refused(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text('{"digest": "0"}\n')

    with pytest.raises(ExperimentInvalid, match=r"runs\.jsonl: line 1 is not a run"):
        RunStore(path)


def test_what_a_run_depends_on_is_in_its_digest_and_no_more(tiny):
    network = tiny.network.model_copy(update={"dropout": 0.5})
    data = tiny.data.model_copy(update={"seed": 7})
    others = [
        compare.seeded(tiny, 1),
        tiny.model_copy(update={"network": network}),
        tiny.model_copy(update={"data": data}),
        tiny.model_copy(update={"clamp": {}}),
    ]

    assert len({digest(settings) for settings in [tiny, *others]}) == 5
    assert digest(experiment.read(TINY_EXPERIMENT)) == digest(tiny)
    assert digest(tiny.model_copy(update={"name": "other"})) == digest(tiny)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5.5, 8, 20, 1000])
def test_t_quantile_is_that_of_scipy(freedom):
    stats = pytest.importorskip("scipy.stats")
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-6)


def test_difference_of_two_means_has_the_interval_of_welch():
    stats = pytest.importorskip("scipy.stats")
    one, other = [0.951, 0.952, 0.9515, 0.9525, 0.9518], [0.949, 0.9508, 0.9495, 0.9501]
    mean, half = Spread.of(one).difference(Spread.of(other))
    expected = stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    assert mean - half == pytest.approx(expected.low, abs=1e-9)
    assert mean + half == pytest.approx(expected.high, abs=1e-9)


def test_difference_without_deviation_has_no_interval():
    mean, half = Spread.of([0.9]).difference(Spread.of([0.8, 0.7]))
    assert mean == pytest.approx(0.15)
    assert math.isnan(half)
