"""Measure the forward pass as in serving: scripted, frozen, called through a `Program`.

The networks are called in turn, so that other load on the machine affects all of them alike and
ratios are meaningful. The weights do not affect the time, so they are not trained.
"""

import io
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from app.artifacts.columns import Column, ModelInputs
from app.artifacts.loader import load_program
from app.artifacts.program import Program
from models.data import Dataset
from models.export.export import description
from models.networks import build as networks
from models.training.experiment import Experiment
from models.training.train import threads

ROWS = (1, 256)
TURNS = 300
WARM_UP_TURNS = 10  # the first calls compile

Times = dict[str, dict[int, list[float]]]


def forward_times(
    experiments: Mapping[str, Experiment],
    dataset: Dataset,
    *,
    rows: Sequence[int] = ROWS,
    turns: int = TURNS,
) -> Times:
    """Seconds of the forward pass of one request, for each network and turn, with one CPU thread.

    Args:
        experiments: by name.
        dataset: the request consists of its first user and first candidates.
        rows: numbers of candidates to measure.
        turns: number of calls of each network.

    Returns:
        By name and number of candidates, `turns` times; the same index is the same turn.
    """
    programs = {name: served(config) for name, config in experiments.items()}
    times: Times = {name: {count: [] for count in rows} for name in programs}
    with threads(1):
        for count in rows:
            request = one_request(dataset, count)
            for turn in range(-WARM_UP_TURNS, turns):
                for name, program in programs.items():
                    start = time.perf_counter()
                    program.run(request)
                    if turn >= 0:
                        times[name][count].append(time.perf_counter() - start)
    return times


def ratio(times: Times, name: str, baseline: str, rows: int) -> float:
    """Median over the turns of the network's time divided by the baseline's."""
    pairs = zip(times[name][rows], times[baseline][rows], strict=True)
    return statistics.median(own / other for own, other in pairs)


def served(experiment: Experiment) -> Program:
    """The untrained network of an experiment, loaded as the service loads it."""
    network = networks.build(experiment.network, experiment.features, experiment.tasks, seed=0)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit", DeprecationWarning)
        warnings.filterwarnings("ignore", r"`torch\.jit", FutureWarning)
        torch.jit.save(torch.jit.script(network.eval()), content)
    return load_program(content.getvalue(), description(experiment, {}), torch.device("cpu"))


def one_request(dataset: Dataset, rows: int) -> ModelInputs:
    """The first user with the first `rows` candidates, repeated from the start if too few."""

    def first(columns: Mapping[str, Tensor], count: int) -> dict[str, Column]:
        return {
            name: column[torch.arange(count) % len(column)].numpy()
            for name, column in columns.items()
        }

    row_to_request = np.zeros(rows, dtype=np.int64)  # [B] all rows belong to request 0
    return ModelInputs(first(dataset.user, 1), first(dataset.candidate, rows), row_to_request)
