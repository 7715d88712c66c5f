"""Checkpoints: an interrupted training run resumes and ends with the same result.

A checkpoint is one safetensors file: tensors for weights, moments and random states, JSON in its
metadata for everything else. It contains no code, so reading one runs nothing.
"""

import copy
import json
import math
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models import data
from models.training.experiment import Experiment, TrainingConfig
from models.training.report import Epoch

MAY_CHANGE = {"epochs", "patience", "threads"}  # keys of [training] that a resumed run may change


class CheckpointInvalid(ValueError):
    """Training cannot resume from a checkpoint. The message is one line."""


@dataclass(slots=True)
class Progress:
    """Progress of a training run.

    Attributes:
        rows: size of the training set, to detect other data.
        epoch: the current one, from 1.
        batches: done in the current epoch.
        loss_sum: over those batches.
        best_loss: the lowest validation loss, of epoch `best_epoch`.
        epochs: results of the finished epochs.
    """

    rows: int
    epoch: int = 1
    batches: int = 0
    loss_sum: float = 0.0
    best_loss: float = math.inf
    best_epoch: int = 0
    epochs: list[Epoch] = field(default_factory=list)

    def is_over(self, training: TrainingConfig) -> bool:
        """Whether training has ended: all epochs done, or no improvement for `patience` epochs."""
        stale = self.epoch - 1 - self.best_epoch >= training.patience and self.best_epoch > 0
        return self.epoch > training.epochs or stale


class TrainingState:
    """Everything that a training run changes: weights, optimiser, random states, progress."""

    def __init__(
        self, network: nn.Module, experiment: Experiment, rows: int, *, path: Path | None = None
    ) -> None:
        """Create the state of a new run.

        Args:
            network: as built.
            experiment: the configuration.
            rows: number of training rows.
            path: of the checkpoint; `None` for none.
        """
        training = experiment.training
        self.path = path
        self.network = network
        self._experiment = experiment
        self.optimizer = torch.optim.AdamW(
            network.parameters(),
            lr=training.learning_rate,
            weight_decay=training.weight_decay,
            fused=True,
        )
        self.shuffle = torch.Generator().manual_seed(training.seed)
        self.dropout = _random_state(training.seed)  # of torch's own generator
        self.progress = Progress(rows)
        self._epoch_shuffle = self.shuffle.get_state()  # at the start of the current epoch
        self._best = copy.deepcopy(network.state_dict())

    def begin_epoch(self) -> None:
        """Remember the random state from which the batches of this epoch are drawn."""
        self._epoch_shuffle = self.shuffle.get_state()

    def end_epoch(self, epoch: Epoch) -> None:
        """Record a finished epoch; keep its weights if they are the best so far."""
        progress = self.progress
        if epoch.is_best:
            progress.best_loss, progress.best_epoch = epoch.validation_loss, epoch.number
            self._best = copy.deepcopy(self.network.state_dict())
        progress.epochs.append(epoch)
        progress.epoch, progress.batches, progress.loss_sum = epoch.number + 1, 0, 0.0
        self._epoch_shuffle = self.shuffle.get_state()

    def keep_best(self) -> None:
        """Load the weights of the best epoch into the network."""
        self.network.load_state_dict(self._best)

    def save(self, path: Path) -> None:
        """Write a checkpoint atomically, with the current random state of torch."""
        tensors = {
            **{f"network.{name}": value for name, value in self.network.state_dict().items()},
            **{f"best.{name}": value for name, value in self._best.items()},
            "random.shuffle": self._epoch_shuffle,
            "random.torch": torch.get_rng_state(),
        }
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        metadata = {
            "progress": json.dumps(asdict(self.progress)),
            "experiment": json.dumps(_fixed(self._experiment)),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_suffix(".writing")
        save_file({name: value.contiguous() for name, value in tensors.items()}, written, metadata)
        written.replace(path)

    def restore(self) -> None:
        """Load everything from the checkpoint.

        Raises:
            CheckpointInvalid: there is none, or it belongs to another experiment or other data.
        """
        path = self.path
        if path is None:
            raise CheckpointInvalid("no checkpoint to resume from")
        tensors, metadata = _read(path)
        was, now = json.loads(metadata["experiment"]), _fixed(self._experiment)
        if differing := sorted(name for name in was | now if was.get(name) != now.get(name)):
            raise CheckpointInvalid(
                f"{path}: cannot resume: changed since the checkpoint: {', '.join(differing)}"
            )
        fields = json.loads(metadata["progress"])
        fields["epochs"] = [Epoch(**epoch) for epoch in fields["epochs"]]
        progress = Progress(**fields)
        if progress.rows != self.progress.rows:
            raise CheckpointInvalid(
                f"{path}: cannot resume: the training set had {progress.rows} rows and now has "
                f"{self.progress.rows}"
            )
        self.progress = progress
        self.network.load_state_dict(_under("network.", tensors))
        self._best = _under("best.", tensors)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _under("optimizer.", tensors).items():
            index, _, moment = name.partition(".")
            moments.setdefault(int(index), {})[moment] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.shuffle.set_state(tensors["random.shuffle"])
        self.dropout = tensors["random.torch"]


def _random_state(seed: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.get_rng_state()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if not {"progress", "experiment"} <= metadata.keys():
                raise CheckpointInvalid(f"{path}: not a checkpoint")
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointInvalid(f"{path}: no checkpoint to resume from") from None
    except SafetensorError as error:
        raise CheckpointInvalid(f"{path}: cannot be read: {error}") from error


def _fixed(experiment: Experiment) -> dict[str, object]:
    """The part of an experiment that must not change between a checkpoint and its resumption."""
    fields: dict[str, object] = experiment.model_dump(
        mode="json", include={"name", "network", "tasks", "data", "embedding"}
    )
    vocabularies = {
        name: sha256(content).hexdigest()
        for name, content in data.vocabulary_files(experiment.data).items()
    }
    fields["vocabulary"] = vocabularies  # files, which may have been rewritten
    return fields | {"training": experiment.training.model_dump(mode="json", exclude=MAY_CHANGE)}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
