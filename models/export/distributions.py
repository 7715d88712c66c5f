"""Distributions of features and scores on held-out rows, for the manifest.

The service compares live traffic with them: see `app.artifacts.distributions`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from app.artifacts.distributions import Distributions, IdBins, NumberBins
from models.data import PADDING, UNKNOWN, Dataset
from models.networks.config import DenseFeature, Feature, IdFeature


def distributions(
    features: Sequence[Feature],
    tasks: Sequence[str],
    held_out: Dataset,
    scores: npt.NDArray[np.float32],
    defaults: Mapping[str, tuple[float, ...]],
) -> Distributions:
    """Return the distributions of the features, and of the scores `[B, K]` of the tasks.

    A missing number counts as the default that the service puts in its place.
    """
    bins_of = {
        feature.name: _bins(feature, held_out, defaults.get(feature.name)) for feature in features
    }
    by_task = {task: NumberBins.of(scores[:, k]) for k, task in enumerate(tasks)}
    return Distributions(
        features={name: bins for name, bins in bins_of.items() if bins is not None},
        scores={task: bins for task, bins in by_task.items() if bins is not None},
    )


def _bins(
    feature: Feature, held_out: Dataset, default: tuple[float, ...] | None
) -> NumberBins | IdBins | None:
    column = (held_out.user if feature.side == "user" else held_out.candidate)[feature.name]
    if isinstance(feature, DenseFeature):
        if default is not None:
            column = torch.where(column.isnan(), torch.tensor(default), column)
        return NumberBins.of(column.numpy().reshape(-1))
    padding = None if isinstance(feature, IdFeature) else PADDING
    return IdBins.of(column.numpy(), unknown=UNKNOWN, padding=padding)
