"""From a configuration to a network: the shell that all architectures share.

The shell turns feature values into the columns of ``x``; a *body*, one of the architectures, turns
``x`` into one output a task.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.networks.cgc import CGC
from models.networks.config import BodyName, Feature, NetworkConfig, Task, entire_space_parents
from models.networks.esmm import ESMM
from models.networks.features import InputColumns, Rows
from models.networks.layers import Body
from models.networks.mmoe import MMoE
from models.networks.moe import MoE
from models.networks.ple import PLE
from models.networks.shared_bottom import SharedBottom
from models.networks.single_task import SingleTask

BODIES: dict[BodyName, type[SingleTask | SharedBottom | MoE | MMoE | CGC | PLE]] = {
    "single_task": SingleTask,
    "shared_bottom": SharedBottom,
    "moe": MoE,
    "mmoe": MMoE,
    "cgc": CGC,
    "ple": PLE,
}


class RankingNetwork(nn.Module):
    """A body behind its feature columns."""

    def __init__(self, columns: InputColumns, body: Body) -> None:
        super().__init__()
        self.columns = columns
        self.body = body

    def forward(
        self, user: dict[str, Tensor], candidate: dict[str, Tensor], row_to_request: Tensor
    ) -> Tensor:
        """Score candidates, each for the user whose request it came in.

        Args:
            user: values of the user features, ``[R, …]``: float32 ``[R, dim]`` of a dense one,
                int64 ``[R]`` of an id, int64 ``[R, max_length]``, padded with -1, of an id list.
            candidate: the same of the candidate features, ``[B, …]``.
            row_to_request: int64 ``[B]``: which of the ``R`` users row ``b`` belongs to.

        Returns:
            ``[B, K]``, a column a task, before the inverse link; float32, or float64 of a network
            in float64.
        """
        u, c = self.columns(user, candidate)  # [R, D_user], [B, D_candidate]
        return self.body(Rows(u, c, row_to_request))  # [B, K]

    @torch.jit.export
    def gate_weights(
        self, user: dict[str, Tensor], candidate: dict[str, Tensor], row_to_request: Tensor
    ) -> list[Tensor]:
        """How much each gate leans on each expert, level by level: ``[B, gates, experts]``.

        Gates stand in task order, a shared gate last; experts in task order, the shared ones last.
        A row sums to 1 over the experts. An architecture without gates gives an empty list.
        """
        u, c = self.columns(user, candidate)  # [R, D_user], [B, D_candidate]
        return self.body.gate_weights(Rows(u, c, row_to_request))


def build(
    network: NetworkConfig,
    features: Sequence[Feature],
    tasks: Sequence[Task],
    *,
    seed: int | None = None,
) -> RankingNetwork:
    """A freshly drawn network, in training mode.

    Args:
        network: the architecture and its counts.
        features: what it reads; at least one, of either side.
        tasks: what it predicts, one output column each, in this order.
        seed: draws the parameters, and leaves torch's own generator as it was; ``None`` draws
            them from that generator.

    Raises:
        ValueError: the three do not fit together; the message names the field.
    """
    if not features:
        raise ValueError("features: at least one is needed")
    if not tasks:
        raise ValueError("tasks: at least one is needed")
    parents = entire_space_parents(network, tasks)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        columns = InputColumns(features)
        inputs = (columns.user.width, columns.candidate.width)
        body: Body = BODIES[network.body](inputs, len(tasks), network)
    if network.architecture == "esmm":
        body = ESMM(body, parents)
    return RankingNetwork(columns, body)
