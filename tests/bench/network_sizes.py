"""Search sizes and regularisation for each network: `python -m tests.bench.network_sizes`.

Every network of `models/configs/census_income` is trained with the values of its file and with one
value changed at a time, on the first rows of the training set. A cell is the smallest validation
loss of a run, mean and standard deviation over the seeds; the test set is not used. Needs the
tables (`python -m models fetch census-income`).
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from models.data.dataset import Dataset, Splits
from models.networks.build import build
from models.training import experiment
from models.training.experiment import Experiment
from models.training.report import Epoch
from models.training.train import fit, threads
from tests.bench.prerequisites import public_data

CONFIGS = Path("models/configs/census_income")
NETWORKS = ("single_task", "shared_bottom", "moe", "mmoe", "cgc", "ple")
CANDIDATES: dict[str, dict[str, Any]] = {
    "as configured": {},
    "dropout 0.2": {"dropout": 0.2},
    "dropout 0.4": {"dropout": 0.4},
    "units (128, 64)": {"expert_hidden_units": (128, 64)},
}


class Silent:
    """A listener that does nothing."""

    def batch(self, rows: int, loss: float) -> None:
        """Called after each training batch."""

    def epoch(self, epoch: Epoch) -> None:
        """Called after each epoch."""


def main() -> None:
    """Train every network with every candidate, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=40_000, help="training rows")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    arguments = parser.parse_args()
    _, splits = public_data(CONFIGS / "mmoe.toml", "census-income")
    assert isinstance(splits.train, Dataset)
    small = Splits(
        train=splits.train.take(torch.arange(arguments.rows)),
        validation=splits.validation.take(torch.arange(20_000)),
        test=splits.test.take(torch.arange(1)),
        dense_sample=splits.dense_sample,
    )
    print("| network | " + " | ".join(CANDIDATES) + " | CPU time |")
    print("| --- |" + " ---: |" * (len(CANDIDATES) + 1), flush=True)
    for name in arguments.networks:
        configured = experiment.read(CONFIGS / f"{name}.toml")
        started = time.process_time()
        cells = [
            cell(configured, changes, small, arguments.seeds) for changes in CANDIDATES.values()
        ]
        spent = time.process_time() - started
        print(f"| {name} | " + " | ".join(cells) + f" | {spent:.0f} s |", flush=True)


def cell(configured: Experiment, changes: dict[str, Any], splits: Splits, seeds: int) -> str:
    """Train a network with some values changed; return the mean and the scatter of its loss."""
    network = configured.network.model_copy(update=changes)
    planned = configured.model_copy(update={"network": network})
    losses = [best_loss(planned, splits, seed) for seed in range(seeds)]
    scatter = statistics.stdev(losses) if seeds > 1 else 0.0
    return f"{statistics.fmean(losses):.4f} ± {scatter:.4f}"


def best_loss(planned: Experiment, splits: Splits, seed: int) -> float:
    """The smallest validation loss of a run."""
    training = planned.training.model_copy(update={"seed": seed})
    planned = planned.model_copy(update={"training": training})
    network = build(planned.network, planned.features, planned.tasks, seed=seed)
    network.columns.fit(splits.dense_sample)
    with threads(training.threads):
        epochs = fit(network, splits, planned, Silent())
    return min(epoch.validation_loss for epoch in epochs)


if __name__ == "__main__":
    main()
