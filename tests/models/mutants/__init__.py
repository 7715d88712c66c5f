"""Deliberately wrong PLEs, the mistakes that public implementations make: the proofs must see each.

Every module here holds one ``Body``; `factory` makes a builder of networks of it.
"""

from collections.abc import Sequence
from typing import Any

import torch

from models.networks import build as networks
from models.networks.config import Feature, NetworkConfig, Task
from tests.models.proofs import Factory


def factory(wrong: Any) -> Factory:
    """`models.networks.build.build`, but every PLE is a ``wrong`` one."""

    def build(
        network: NetworkConfig,
        features: Sequence[Feature],
        tasks: Sequence[Task],
        *,
        seed: int,
    ) -> Any:
        built: Any = networks.build(network, features, tasks, seed=seed)
        if network.architecture == "ple":
            torch.manual_seed(seed)
            inputs = (built.columns.user.width, built.columns.candidate.width)
            built.body = wrong(inputs, len(tasks), network)
        return built

    return build
