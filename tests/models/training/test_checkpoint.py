"""Checkpoints: a run that was stopped ends as one that was not."""

import io
import json
import signal

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save_file

from app.artifacts.artifact_files import read_manifest
from app.artifacts.store import Store
from models import data
from models.networks.build import build
from models.training import experiment, train
from models.training.checkpoint import CheckpointInvalid, TrainingState
from tests import TINY_EXPERIMENT
from tests.models.impressions import read


@pytest.fixture(scope="module")
def tiny():
    settings = experiment.read(TINY_EXPERIMENT)
    dropout = settings.network.model_copy(update={"dropout": 0.3})
    return with_training(settings.model_copy(update={"network": dropout}), epochs=3)


def with_training(base, **changes):
    return base.model_copy(update={"training": base.training.model_copy(update=changes)})


@pytest.fixture(scope="module")
def splits(tiny):
    return data.generate(tiny.data)


@pytest.fixture(autouse=True)
def _as_in_a_fresh_process():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Stopper:
    """Presses Ctrl-C after so many batches, or after so many epochs."""

    def __init__(self, *, batches: int = -1, epochs: int = -1, presses: int = 1) -> None:
        self.batches, self.epochs, self.presses = batches, epochs, presses
        self.seen = 0

    def batch(self, rows: int, loss: float) -> None:
        assert rows > 0
        assert loss > 0
        self.seen += 1
        self.batches -= 1
        if self.batches == 0:
            self.press()

    def epoch(self, epoch: object) -> None:
        assert epoch is not None
        self.epochs -= 1
        if self.epochs == 0:
            self.press()

    def press(self) -> None:
        for _ in range(self.presses):
            signal.raise_signal(signal.SIGINT)


def fit(settings, splits, path, listener, *, resume=False):
    network = build(settings.network, settings.features, settings.tasks, seed=0)
    state = TrainingState(network, settings, splits.train.rows, path=path)
    if resume:
        state.restore()
    return network, train.fit(network, splits, settings, listener, state)


def test_resumed_run_equals_an_uninterrupted_run(tiny, splits, tmp_path):
    whole, epochs = fit(tiny, splits, None, counter := Stopper())
    third = counter.seen // 3
    for number, stop in enumerate(
        (Stopper(batches=1), Stopper(batches=third), Stopper(batches=third + 2), Stopper(epochs=2))
    ):
        path = tmp_path / f"{number}.safetensors"
        with pytest.raises(train.Interrupted):
            fit(tiny, splits, path, stop)
        torch.manual_seed(99)  # what happens in between is of no account
        resumed, again = fit(tiny, splits, path, rest := Stopper(), resume=True)
        assert stop.seen + rest.seen == counter.seen
        assert again == epochs
        torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_streamed_table_is_resumed_in_the_middle_of_an_epoch(tmp_path):
    settings = read(tmp_path)
    splits = data.generate(settings.data, settings.tasks)
    whole, epochs = fit(settings, splits, None, Stopper())
    with pytest.raises(train.Interrupted):
        fit(settings, splits, tmp_path / "run", Stopper(batches=3))
    resumed, again = fit(settings, splits, tmp_path / "run", Stopper(), resume=True)
    assert again == epochs
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_finished_run_can_resume_with_more_epochs(tiny, splits, tmp_path):
    longer = with_training(tiny, epochs=5)
    whole, epochs = fit(longer, splits, None, Stopper())
    fit(tiny, splits, tmp_path / "run", Stopper())
    resumed, again = fit(longer, splits, tmp_path / "run", Stopper(), resume=True)
    assert again == epochs
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_run_that_stopped_early_stays_stopped(tiny, splits, tmp_path):
    restless = with_training(tiny, epochs=50, learning_rate=0.3, patience=1)
    network, epochs = fit(restless, splits, tmp_path / "run", Stopper())
    resumed, again = fit(restless, splits, tmp_path / "run", idle := Stopper(), resume=True)
    assert idle.seen == 0
    assert again == epochs
    torch.testing.assert_close(resumed.state_dict(), network.state_dict(), rtol=0, atol=0)


def test_second_interrupt_raises_at_once(tiny, splits, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(tiny, splits, tmp_path / "run", Stopper(batches=2, presses=2))


def test_interrupt_without_checkpoint_raises_at_once(tiny, splits):
    with pytest.raises(KeyboardInterrupt):
        fit(tiny, splits, None, Stopper(batches=1))


def test_signal_handler_is_restored(tiny, splits, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(train.Interrupted):
        fit(tiny, splits, tmp_path / "run", Stopper(batches=1))
    assert signal.getsignal(signal.SIGINT) is before
    fit(tiny, splits, tmp_path / "run", Stopper(), resume=True)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"network": {"num_levels": 1}}, "network"),
        ({"training": {"seed": 7}}, "training"),
        ({"embedding": {"dim": 3}, "data": {"items": 9}}, "data, embedding"),
    ],
)
def test_checkpoint_of_another_experiment_is_refused(tiny, splits, tmp_path, changes, named):
    fit(tiny, splits, tmp_path / "run", Stopper())
    parts = {name: getattr(tiny, name).model_copy(update=part) for name, part in changes.items()}
    other = tiny.model_copy(update=parts)
    with pytest.raises(CheckpointInvalid, match=f"changed since the checkpoint: {named}$"):
        fit(other, splits, tmp_path / "run", Stopper(), resume=True)


def test_checkpoint_of_other_data_is_refused(tiny, splits, tmp_path):
    fit(tiny, splits, tmp_path / "run", Stopper())
    network = build(tiny.network, tiny.features, tiny.tasks, seed=0)
    state = TrainingState(network, tiny, splits.train.rows + 1, path=tmp_path / "run")
    with pytest.raises(CheckpointInvalid, match=rf"had {splits.train.rows} rows and now"):
        state.restore()


def test_checkpoint_of_another_vocabulary_is_refused(tmp_path):
    settings = read(tmp_path)
    splits = data.generate(settings.data, settings.tasks)
    fit(settings, splits, tmp_path / "run", Stopper())
    listed = (tmp_path / "items.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "items.jsonl").write_text("".join(listed[::-1]))
    with pytest.raises(CheckpointInvalid, match=r"changed since the checkpoint: vocabulary$"):
        fit(settings, splits, tmp_path / "run", Stopper(), resume=True)


def test_invalid_checkpoint_is_refused(tiny, splits, tmp_path):
    path = tmp_path / "run"
    with pytest.raises(CheckpointInvalid, match="no checkpoint to resume from"):
        fit(tiny, splits, path, Stopper(), resume=True)
    path.write_bytes(b"something else")
    with pytest.raises(CheckpointInvalid, match="cannot be read"):
        fit(tiny, splits, path, Stopper(), resume=True)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(CheckpointInvalid, match="not a checkpoint"):
        fit(tiny, splits, path, Stopper(), resume=True)


def test_checkpoint_is_tensors_and_json(tiny, splits, tmp_path):
    fit(tiny, splits, tmp_path / "run", Stopper())
    with safe_open(tmp_path / "run", framework="np") as file:
        assert {name.split(".")[0] for name in file.keys()} == {  # noqa: SIM118
            *("network", "best", "optimizer", "random")
        }
        assert {name: type(json.loads(text)) for name, text in file.metadata().items()} == {
            "progress": dict,
            "experiment": dict,
        }
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_published_run_deletes_its_checkpoint(tiny, tmp_path):
    path = tmp_path / ".checkpoints" / "tiny.safetensors"
    console = Console(file=io.StringIO())
    artifact = train.run(tiny, Store(tmp_path), console=console, checkpoint=path)
    assert read_manifest(artifact).version == 1
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_resumed_run_reports_its_epoch(tiny, splits, tmp_path):
    path = tmp_path / ".checkpoints" / "tiny.safetensors"
    with pytest.raises(train.Interrupted):
        fit(tiny, splits, path, Stopper(epochs=2))
    shown = io.StringIO()
    train.run(tiny, Store(tmp_path), console=Console(file=shown), checkpoint=path, resume=True)
    assert "resuming in epoch 3/3" in shown.getvalue()
    assert "epoch 2/3  train" not in shown.getvalue()
    assert "epoch 3/3  train" in shown.getvalue()
