"""All experts of a level start as copies of the first."""

import torch

from models.networks.config import NetworkConfig
from models.networks.ple import PLE
from tests.models.loop import stacked


class Body(PLE):
    def __init__(self, inputs: tuple[int, int], num_tasks: int, config: NetworkConfig) -> None:
        super().__init__(inputs, num_tasks, config)
        with torch.no_grad():
            for experts in (self.experts, *(level.experts for level in self.levels)):
                for linear in stacked(experts):
                    linear.weight.copy_(linear.weight[:1].expand_as(linear.weight).clone())
                    linear.bias.copy_(linear.bias[:1].expand_as(linear.bias).clone())
