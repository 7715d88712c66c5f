"""The gates of level 2 and above select by ``x``, not by the level before."""

from typing import Any

from torch import Tensor, nn

from models.networks.config import NetworkConfig
from models.networks.features import Rows
from models.networks.gates import InputGates, mix
from models.networks.ple import PLE, level_gates


class Body(PLE):
    def __init__(self, inputs: tuple[int, int], num_tasks: int, config: NetworkConfig) -> None:
        super().__init__(inputs, num_tasks, config)
        counts = (*config.task_experts(num_tasks), config.num_shared_experts)
        self.selectors = nn.ModuleList(
            InputGates(
                level_gates(counts[:-1], counts[-1], last=j == config.levels),
                sum(counts),
                inputs,
                config,
            )
            for j in range(2, config.levels + 1)
        )

    def run(self, x: Rows) -> tuple[Tensor, list[Tensor]]:
        weights = [self.gates(x)]
        X = mix(weights[0], self.experts(x))
        levels: list[Any] = list(self.levels)
        for level, selector in zip(levels, self.selectors, strict=True):
            weights.append(selector(x))
            X = mix(weights[-1], level.experts(X, level.owner))
        return X, weights

    def forward(self, x: Rows) -> Tensor:
        logits: Tensor = self.towers(self.run(x)[0])
        return logits

    def gate_weights(self, x: Rows) -> list[Tensor]:
        return self.run(x)[1]
