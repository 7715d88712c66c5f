import io
import json
import re

import pytest
import torch
from rich.console import Console

from app.artifacts.artifact_files import read_manifest
from app.artifacts.store import Store
from models import data
from models.networks.build import build
from models.networks.config import links
from models.training import experiment, train
from models.training.evaluate import predict
from models.training.losses import task_losses, task_weights
from models.training.report import Report, warnings
from tests import REPOSITORY, TINY_EXPERIMENT

CONFIGS = REPOSITORY / "models" / "configs"


@pytest.fixture(scope="module")
def tiny():
    return experiment.read(TINY_EXPERIMENT)


@pytest.fixture(scope="module")
def splits(tiny):
    return data.generate(tiny.data)


def with_training(base, **changes):
    return base.model_copy(update={"training": base.training.model_copy(update=changes)})


def fit(settings, splits):
    network = build(
        settings.network, settings.features, settings.tasks, seed=settings.training.seed
    )
    console = Console(file=io.StringIO())
    with Report(console, epochs=settings.training.epochs, rows=splits.train.rows) as report:
        return network, train.fit(network, splits, settings, report)


def validation_loss(network, settings, splits):
    columns = links(settings.network, settings.tasks)
    outputs = predict(network, splits.validation)
    losses = task_losses(outputs, splits.validation.labels, settings.tasks, columns)
    return float(task_weights(settings.tasks) @ losses)


def test_training_lowers_the_loss(tiny, splits):
    _, epochs = fit(with_training(tiny, epochs=4), splits)

    assert [epoch.number for epoch in epochs] == [1, 2, 3, 4]
    assert epochs[-1].train_loss < epochs[0].train_loss
    assert epochs[-1].validation_loss < epochs[0].validation_loss
    assert set(epochs[0].validation_losses) == {"click", "like", "dwell"}


def test_the_same_seed_trains_the_same_network(tiny, splits):
    dropout = tiny.network.model_copy(update={"dropout": 0.2})
    tiny = tiny.model_copy(update={"network": dropout})
    torch.manual_seed(1)
    first, _ = fit(tiny, splits)
    torch.manual_seed(2)
    second, _ = fit(tiny, splits)
    other, _ = fit(with_training(tiny, seed=1), splits)

    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
    assert validation_loss(other, tiny, splits) != validation_loss(first, tiny, splits)


def test_dropout_acts_while_training(tiny, splits):
    dropout = tiny.network.model_copy(update={"dropout": 0.5})
    without, _ = fit(tiny, splits)
    with_it, _ = fit(tiny.model_copy(update={"network": dropout}), splits)

    assert validation_loss(with_it, tiny, splits) != validation_loss(without, tiny, splits)


def test_training_leaves_the_callers_random_numbers_alone(tiny, splits):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    fit(tiny, splits)

    assert torch.equal(torch.rand(2), expected)


def test_training_stops_early_and_keeps_the_best_weights(tiny, splits):
    restless = with_training(tiny, epochs=50, learning_rate=0.3, patience=2)

    network, epochs = fit(restless, splits)

    best = min(epochs, key=lambda epoch: epoch.validation_loss)
    assert len(epochs) == best.number + 2 < 50
    assert epochs[-1].validation_loss > best.validation_loss
    assert validation_loss(network, restless, splits) == pytest.approx(best.validation_loss)


def test_later_epochs_weigh_tasks_by_their_decay(tiny, splits):
    fading = tuple(task.model_copy(update={"weight_decay": 1e-9}) for task in tiny.tasks)
    tiny = with_training(tiny.model_copy(update={"tasks": fading}), epochs=2, patience=2)

    _, epochs = fit(tiny, splits)

    assert epochs[0].train_loss > 0.1
    assert epochs[1].train_loss < 1e-6
    assert epochs[1].validation_loss > 0.1  # so that epochs can be compared


@pytest.mark.parametrize(("batch_rows", "which"), [(128, "training"), (10**6, "validation")])
def test_non_finite_loss_stops_the_run_without_publishing(tiny, tmp_path, batch_rows, which):
    wild = with_training(tiny, learning_rate=1e30, batch_rows=batch_rows)

    with pytest.raises(
        train.Diverged,
        match=rf"^epoch 1: the {which} loss is (nan|inf); try a smaller learning_rate$",
    ):
        train.run(wild, Store(tmp_path), console=Console(file=io.StringIO()))

    assert list(tmp_path.iterdir()) == []


def test_run_shows_its_epochs_and_figures_and_publishes_them(tiny, tmp_path):
    shown = io.StringIO()
    before = torch.get_num_threads()
    two_threads = with_training(tiny, threads=before + 1)

    artifact = train.run(two_threads, Store(tmp_path), console=Console(file=shown, width=100))

    assert str(artifact) == "tiny/1"
    figures = read_manifest(artifact).evaluation
    assert 0 < (figures["click"]["auc"] or 0) <= 1
    lines = shown.getvalue()
    assert "epoch 1/2" in lines
    assert "epoch 2/2" in lines
    assert "true expectation" in lines
    assert f"{figures['click']['auc']:.4f}" in lines
    assert lines.count("rows/s") == 2  # a file gets no bar
    assert "\x1b" not in lines
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("quiet", "shows_a_bar"), [(False, True), (True, False)])
def test_terminal_gets_a_progress_bar_unless_quiet(tiny, tmp_path, quiet, shows_a_bar):
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=100)

    train.run(tiny, Store(tmp_path), quiet=quiet, console=terminal)

    progress = shown.getvalue().split("held-out")[0]
    assert ("━━" in progress) is shows_a_bar
    time_left = re.search(r"rows/s\S* \S*(\d:\d\d:\d\d|-:--:--)", progress)
    assert (time_left is not None) is shows_a_bar
    assert "epoch" in shown.getvalue()


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_configuration_trains_on_a_small_feed(path, tiny, tmp_path):
    full = experiment.read(path)
    small = with_training(full, epochs=1).model_copy(update={"data": tiny.data})

    artifact = train.run(small, Store(tmp_path), console=Console(file=io.StringIO()))

    manifest = read_manifest(artifact)
    assert manifest.architecture == full.network.architecture
    assert set(manifest.evaluation) == {"click", "like", "dwell"}
    json.dumps(manifest.training)


def test_the_configurations_differ_in_the_network_only():
    read = {path.stem: experiment.read(path) for path in CONFIGS.glob("*.toml")}
    rest = {
        name: config.model_dump_json(exclude={"network"}) for name, config in sorted(read.items())
    }

    assert len(set(rest.values())) == 1
    assert len({config.network.architecture for config in read.values()}) == len(read) == 7


def test_synthetic_regression_trains(tmp_path):
    settings = experiment.Experiment.model_validate(
        {
            "name": "pair",
            "network": {"architecture": "mmoe", "num_experts": 2, "expert_hidden_units": [8]},
            "tasks": [{"name": "y1", "kind": "regression"}, {"name": "y2", "kind": "regression"}],
            "data": {"source": "synthetic", "rows": 2000, "dim": 8},
            "training": {"epochs": 3, "learning_rate": 0.01, "batch_rows": 64},
            "ranking": {"weights": {"y1": 1.0}},
        }
    )
    artifact = train.run(settings, Store(tmp_path), console=Console(file=io.StringIO()))

    figures = {name: value or 0 for name, value in read_manifest(artifact).evaluation["y1"].items()}
    assert figures["oracle_mse"] == pytest.approx(0.01, rel=0.3)
    assert figures["oracle_mse"] < figures["mse"] < 4


def test_network_that_learned_nothing_is_published_with_a_warning(tiny, tmp_path):
    output = io.StringIO()
    blind = with_training(tiny, learning_rate=1e-12, epochs=1)

    train.run(blind, Store(tmp_path), console=Console(file=output, width=200))

    shown = output.getvalue()
    assert re.search(r'warning: task "\w+": X?AUC 0\.[45]\d+ on held-out rows is no better', shown)


def test_network_that_learned_something_is_published_without_a_warning():
    learned = {"click": {"auc": 0.53, "user_auc": 0.5}, "price": {"mse": 3.0}}
    assert warnings(learned) == []
    assert len(warnings({"click": {"auc": 0.51}, "dwell": {"xauc": 0.5, "mae": 2.0}})) == 2
