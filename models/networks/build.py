"""Build a network from its configuration.

A network has two parts: the feature columns turn feature values into the input ``x``, and the
*body*, one of the architectures, turns ``x`` into one output per task.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.networks.cgc import CGC
from models.networks.config import BodyName, Feature, NetworkConfig, Task, entire_space_parents
from models.networks.esmm import ESMM
from models.networks.features import InputColumns, Rows
from models.networks.layers import Body, InputLinear
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
    """Feature columns, then a body."""

    def __init__(self, columns: InputColumns, body: Body) -> None:
        super().__init__()
        self.columns = columns
        self.body = body
        self.folded_width = 0  # H
        for module in self.modules():
            if isinstance(module, InputLinear):
                module.folded_at = self.folded_width
                self.folded_width += module.count * module.outputs

    def forward(
        self, user: dict[str, Tensor], candidate: dict[str, Tensor], row_to_request: Tensor
    ) -> Tensor:
        """Score candidates, each for the user of its request.

        Args:
            user: values of the user features, ``[R, …]``: float32 ``[R, dim]`` of a dense one,
                int64 ``[R]`` of an id, int64 ``[R, max_length]``, padded with -1, of an id list.
            candidate: values of the candidate features, ``[B, …]``, in the same form.
            row_to_request: int64 ``[B]``: which of the ``R`` users row ``b`` belongs to.

        Returns:
            ``[B, K]``, one column per task, before the inverse link; float32, or float64 if the
            network is float64.
        """
        u, c = self.columns(user, candidate)  # [R, D_user], [B, D_candidate]
        return self.body(Rows(u, c, row_to_request))  # [B, K]

    @torch.jit.export
    def gate_weights(
        self, user: dict[str, Tensor], candidate: dict[str, Tensor], row_to_request: Tensor
    ) -> list[Tensor]:
        """The weight that each gate gives to each expert, one ``[B, gates, experts]`` per level.

        Gates are in task order, a shared gate last; experts in task order, shared ones last. The
        weights of a gate sum to 1 over the experts. Without gates, the list is empty.
        """
        u, c = self.columns(user, candidate)  # [R, D_user], [B, D_candidate]
        return self.body.gate_weights(Rows(u, c, row_to_request))

    @torch.jit.export
    def fold(self, candidate: dict[str, Tensor]) -> Tensor:
        """What all first layers make of candidates, float32 ``[B, H]``: it holds for any user.

        ``H`` is the number of units of all first layers that read the input, of experts and gates.
        """
        c = self.columns.of_candidates(candidate)  # [B, D_candidate]
        folded = torch.empty(c.size(0), self.folded_width, dtype=torch.float32, device=c.device)
        self.body.fold(c, folded)
        return folded

    @torch.jit.export
    def score_folded(
        self, user: dict[str, Tensor], folded: Tensor, row_to_request: Tensor
    ) -> Tensor:
        """Score candidates as `forward` does, from the rows that `fold` made of them."""
        u = self.columns.of_users(user)  # [R, D_user]
        no_columns = folded[:, :0]  # [B, 0]
        return self.body(Rows(u, no_columns, row_to_request, folded))  # [B, K]


def build(
    network: NetworkConfig,
    features: Sequence[Feature],
    tasks: Sequence[Task],
    *,
    seed: int | None = None,
) -> RankingNetwork:
    """Build a network with newly drawn parameters, in training mode.

    Args:
        network: the architecture and its sizes.
        features: its inputs; at least one, on either side.
        tasks: its outputs, one column each, in this order.
        seed: of the parameters; torch's global generator is left unchanged. ``None`` draws from
            the global generator.

    Raises:
        ValueError: the arguments do not fit together; the message names the field.
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
