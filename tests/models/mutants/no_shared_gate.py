"""The shared part of a level is handed on as the mean of the shared experts."""

from typing import Any

import torch
from torch import Tensor

from models.networks.config import NetworkConfig
from models.networks.features import Rows
from models.networks.gates import Gates, InputGates, mix
from models.networks.ple import PLE, level_gates


class Body(PLE):
    def __init__(self, inputs: tuple[int, int], num_tasks: int, config: NetworkConfig) -> None:
        super().__init__(inputs, num_tasks, config)
        counts = (*config.task_experts(num_tasks), config.num_shared_experts)
        self.num_shared = counts[-1]
        sees = level_gates(counts[:-1], counts[-1], last=True)
        self.gates = InputGates(sees, sum(counts), inputs, config)
        for level in self.levels:
            level.gates = Gates(sees, sum(counts), config.expert_hidden_units[-1], config)

    def run(self, x: Rows) -> tuple[Tensor, list[Tensor]]:
        e, weights = self.experts(x), [self.gates(x)]
        levels: list[Any] = list(self.levels)
        for level in levels:
            shared = e[-self.num_shared :].mean(0, keepdim=True)
            X = torch.cat([mix(weights[-1], e), shared])
            e = level.experts(X, level.owner)
            weights.append(level.gates(X[:-1]))
        return mix(weights[-1], e), weights

    def forward(self, x: Rows) -> Tensor:
        logits: Tensor = self.towers(self.run(x)[0])
        return logits

    def gate_weights(self, x: Rows) -> list[Tensor]:
        return self.run(x)[1]
