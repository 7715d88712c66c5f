import io
import json

import pytest
from rich.console import Console

from models import data
from models.compare import compare, series
from models.compare.runs import RunStore
from models.compare.series import PlannedRun, SeriesReport, train_missing
from models.networks.build import build
from models.training import experiment
from models.training.train import Diverged
from tests import TINY_EXPERIMENT
from tests.models.comparisons import a_run


@pytest.fixture(scope="module")
def tiny():
    return experiment.read(TINY_EXPERIMENT)


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


def planned(tiny, *seeds):
    return [PlannedRun("PLE", compare.seeded(tiny, seed)) for seed in seeds]


def test_interrupted_series_continues(tiny, tmp_path, console, monkeypatch):
    def stop(report, planned, rows):  # noqa: ARG001
        if planned.seed == 1:
            raise KeyboardInterrupt

    path = tmp_path / "runs.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(SeriesReport, "run", stop)
        with pytest.raises(KeyboardInterrupt):
            train_missing(planned(tiny, 0, 1), RunStore(path), console)
    before = path.read_text()
    runs = train_missing(planned(tiny, 0, 1), RunStore(path), console)

    assert [json.loads(line)["seed"] for line in before.splitlines()] == [0]
    assert path.read_text().startswith(before)
    assert [run.seed for run in runs] == [0, 1]
    assert len(path.read_text().splitlines()) == 2
    assert "1 of 2 runs are already done" in console.file.getvalue()


def test_finished_runs_are_not_trained_again(tiny, tmp_path, console, monkeypatch):
    run_store = RunStore(tmp_path / "runs.jsonl")
    runs = train_missing(planned(tiny, 0), run_store, console)
    monkeypatch.delattr(series, "fit")

    assert train_missing(planned(tiny, 0), run_store, console) == runs


def test_run_records_seed_epochs_and_parameters(tiny, tmp_path, console):
    (run,) = train_missing(planned(tiny, 4), RunStore(tmp_path / "runs.jsonl"), console)

    network = build(tiny.network, tiny.features, tiny.tasks)
    everything, embedded = (
        sum(parameter.numel() for parameter in module.parameters())
        for module in (network, network.columns)
    )
    assert (run.name, run.seed, run.epochs) == ("PLE", 4, 2)
    assert (run.parameters, run.embedding_parameters) == (everything - embedded, embedded)
    assert set(run.evaluation) == {"click", "like given click", "click and like", "dwell"}


def test_consecutive_runs_share_their_data(tiny, tmp_path, console, monkeypatch):
    made = []
    generate = data.generate

    def counted(config):
        made.append(config)
        return generate(config)

    monkeypatch.setattr(data, "generate", counted)

    train_missing(planned(tiny, 0, 1, 2), RunStore(tmp_path / "runs.jsonl"), console)

    assert made == [tiny.data]


def test_run_that_diverges_is_named(tiny, tmp_path, console):
    wild = tiny.training.model_copy(update={"learning_rate": 1e30, "seed": 3})
    planned = [PlannedRun("PLE", tiny.model_copy(update={"training": wild}))]

    with pytest.raises(Diverged, match=r"^PLE, seed 3: epoch 1: "):
        train_missing(planned, RunStore(tmp_path / "runs.jsonl"), console)


def test_time_left_is_mean_duration_times_runs_left(tiny, console):
    now = 0.0
    report = SeriesReport(console, runs=3, clock=lambda: now)
    report.run(planned(tiny, 0)[0], rows=100)
    report.batch(rows=50, loss=0.5)
    assert report.time_left() == ""  # a quarter of a run: nothing to go by
    now = 30.0
    report.batch(rows=50, loss=0.5)
    assert report.time_left() == "2:30 left"  # half a run took 30 s
    report.over(a_run(0, {"click": {"auc": 0.75, "user_auc": 0.7}}))

    assert report.time_left() == "1:00 left"
    assert "1/3  MMoE, seed 0: 2 epochs, 1 s  click AUC 0.7500  1:00" in console.file.getvalue()
