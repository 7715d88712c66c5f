"""How long a forward pass takes as it is served: scripted, frozen, called through a `Program`.

The networks are called by turns, so that whatever else the machine does meets all of them: a ratio
holds where a time alone would not. Weights do not matter for it, so they are freshly drawn.
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
    """Seconds of each network's forward pass of one request, turn by turn, in one thread on CPU.

    Args:
        experiments: what to time, by name.
        dataset: the request is made of its first user and first candidates.
        rows: how many candidates a request has.
        turns: how often each is called.

    Returns:
        By name and number of candidates, `turns` times; times of one turn were taken together.
    """
    programs = {name: served(each) for name, each in experiments.items()}
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
    """The median over the turns of a network's time over the baseline's."""
    pairs = zip(times[name][rows], times[baseline][rows], strict=True)
    return statistics.median(own / other for own, other in pairs)


def served(experiment: Experiment) -> Program:
    """The experiment's network, untrained, as the service would have loaded it."""
    network = networks.build(experiment.network, experiment.features, experiment.tasks, seed=0)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit", DeprecationWarning)
        warnings.filterwarnings("ignore", r"`torch\.jit", FutureWarning)
        torch.jit.save(torch.jit.script(network.eval()), content)
    return load_program(content.getvalue(), description(experiment, {}), torch.device("cpu"))


def one_request(dataset: Dataset, rows: int) -> ModelInputs:
    """The first user with the first `rows` candidates, from the front again if there are fewer."""

    def first(columns: Mapping[str, Tensor], count: int) -> dict[str, Column]:
        return {
            name: column[torch.arange(count) % len(column)].numpy()
            for name, column in columns.items()
        }

    row_to_request = np.zeros(rows, dtype=np.int64)  # [B] all rows are the first request's
    return ModelInputs(first(dataset.user, 1), first(dataset.candidate, rows), row_to_request)
