"""Rows/s of training beside torch-rechub and plain PyTorch: `python -m tests.bench.training_speed`.

All three train the MMoE of `models/configs/census_income/mmoe.toml` on the same rows, in one
process with one thread, in turn; a round trains each on the same number of batches. The ratio of a
round cancels other load of the machine that lasts longer than a round. Reading the data is not
measured. Needs the tables (`python -m models fetch census-income`) and torch-rechub, perhaps in
a folder of its own (`pip install --target DIR torch-rechub`, then `PYTHONPATH=.:DIR`).
"""

import argparse
import contextlib
import io
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from models.data import Dataset
from models.networks.build import build
from models.networks.config import IdFeature
from models.training.checkpoint import TrainingState
from models.training.experiment import Experiment
from models.training.report import Epoch
from models.training.train import _learn, threads
from tests.bench.prerequisites import public_data, require_packages

CONFIG = Path("models/configs/census_income/mmoe.toml")
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.1


class Silent:
    """A listener that does nothing."""

    def batch(self, rows: int, loss: float) -> None:
        """Called after each training batch."""

    def epoch(self, epoch: Epoch) -> None:
        """Called after each epoch."""


def ours(settings: Experiment, rows: Dataset, sample: dict[str, Tensor]) -> Callable[[], object]:
    """The training loop of `python -m models train`."""
    network = build(settings.network, settings.features, settings.tasks, seed=0)
    network.columns.fit(sample)
    state = TrainingState(network, settings, rows.rows)

    def epoch() -> None:
        state.progress.batches = 0
        _learn(state, rows, settings, Silent(), lambda: False)

    return epoch


class PlainMMoE(nn.Module):
    """MMoE as a tutorial writes it: a list of experts, a loop, `nn.Embedding` for each feature."""

    def __init__(self, settings: Experiment) -> None:
        super().__init__()
        self.ids = [feature for feature in settings.features if isinstance(feature, IdFeature)]
        dim = settings.embedding.dim
        self.embeddings = nn.ModuleList(nn.Embedding(f.vocabulary_size, dim) for f in self.ids)
        width, config = 7 + dim * len(self.ids), settings.network
        units = config.expert_hidden_units
        self.experts = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, units[0]),
                nn.ReLU(),
                nn.Dropout(config.dropout),
                nn.Linear(units[0], units[1]),
                nn.ReLU(),
                nn.Dropout(config.dropout),
            )
            for _ in range(config.num_experts)
        )
        self.gates = nn.ModuleList(nn.Linear(width, config.num_experts) for _ in settings.tasks)
        tower = config.tower_hidden_units[0]
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Linear(units[1], tower), nn.ReLU(), nn.Linear(tower, 1))
            for _ in settings.tasks
        )

    def forward(self, numbers: Tensor, ids: Tensor) -> Tensor:
        """Logits ``[B, K]``."""
        embedded = [table(ids[:, i]) for i, table in enumerate(self.embeddings)]
        x = torch.cat([numbers, *embedded], 1)
        experts = torch.stack([expert(x) for expert in self.experts], 1)  # [B, n, d]
        outputs = []
        for gate, tower in zip(self.gates, self.towers, strict=True):
            weights = torch.softmax(gate(x), 1).unsqueeze(2)  # [B, n, 1]
            outputs.append(tower((weights * experts).sum(1)))
        return torch.cat(outputs, 1)


def plain(settings: Experiment, rows: Dataset) -> Callable[[], object]:
    """A plain PyTorch loop over tensors in a DataLoader."""
    model = PlainMMoE(settings)
    ids = torch.stack([rows.candidate[feature.name] for feature in model.ids], 1)
    labels = torch.stack([rows.labels[task.name] for task in settings.tasks], 1)
    loader = DataLoader(
        TensorDataset(rows.candidate["numbers"], ids, labels),
        batch_size=settings.training.batch_rows,
        shuffle=True,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def epoch() -> None:
        for numbers, chosen, label in loader:
            loss = functional.binary_cross_entropy_with_logits(model(numbers, chosen), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()

    return epoch


def rechub(settings: Experiment, rows: Dataset) -> Callable[[], object]:
    """The MMOE and the MTLTrainer of torch-rechub."""
    from torch_rechub.basic.features import DenseFeature, SparseFeature
    from torch_rechub.models.multi_task import MMOE
    from torch_rechub.trainers import MTLTrainer
    from torch_rechub.utils.data import DataGenerator

    ids = [feature for feature in settings.features if isinstance(feature, IdFeature)]
    dim, network = settings.embedding.dim, settings.network
    features: list[Any] = [DenseFeature(f"number_{i}") for i in range(7)]
    features += [SparseFeature(f.name, f.vocabulary_size, embed_dim=dim) for f in ids]
    inputs = {f"number_{i}": rows.candidate["numbers"][:, i].numpy() for i in range(7)}
    inputs |= {f.name: rows.candidate[f.name].numpy() for f in ids}
    labels = torch.stack([rows.labels[task.name] for task in settings.tasks], 1).numpy()
    units = {"dims": list(network.expert_hidden_units), "dropout": network.dropout}
    towers = [{"dims": list(network.tower_hidden_units)} for _ in settings.tasks]
    kinds = ["classification"] * len(settings.tasks)
    model = MMOE(features, kinds, network.num_experts, units, towers)
    loader, _, _ = DataGenerator(inputs, labels).generate_dataloader(
        x_val=inputs,
        y_val=labels,
        x_test=inputs,
        y_test=labels,
        batch_size=settings.training.batch_rows,
    )
    parameters = {"lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY}
    trainer = MTLTrainer(model, kinds, optimizer_params=parameters, n_epoch=1)

    def epoch() -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            trainer.train_one_epoch(loader)

    return epoch


def rounds(loops: dict[str, Callable[[], object]], count: int) -> Iterator[dict[str, float]]:
    """Seconds of CPU time and of wall time of each loop, round by round."""
    for _ in range(count):
        times = {}
        for name, epoch in loops.items():
            wall, cpu = time.perf_counter(), time.process_time()
            epoch()
            times[name] = time.process_time() - cpu
            times[f"{name} wall"] = time.perf_counter() - wall
        yield times


def main() -> None:
    """Print a table of rows/s and of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=25_600, help="rows per round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    require_packages("torch_rechub")
    settings, splits = public_data(CONFIG, "census-income")
    assert isinstance(splits.train, Dataset)
    rows = splits.train.take(torch.arange(arguments.rows))
    sample = dict(splits.dense_sample)
    loops = {
        "ours": ours(settings, rows, sample),
        "plain PyTorch": plain(settings, rows),
        "torch-rechub": rechub(settings, rows),
    }
    with threads(1):
        list(rounds(loops, 1))  # warm up
        measured = list(rounds(loops, arguments.rounds))
    print("| loop | rows/s of CPU time | rows/s | CPU time / ours |\n| --- | ---: | ---: | ---: |")
    for name in loops:
        cpu = statistics.median(times[name] for times in measured)
        wall = statistics.median(times[f"{name} wall"] for times in measured)
        ratio = statistics.median(times[name] / times["ours"] for times in measured)
        print(
            f"| {name} | {arguments.rows / cpu:,.0f} | {arguments.rows / wall:,.0f} | {ratio:.2f} |"
        )


if __name__ == "__main__":
    main()
