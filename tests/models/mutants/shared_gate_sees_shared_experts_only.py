"""The shared gate leaves the tasks' experts out."""

from models.networks.config import NetworkConfig
from models.networks.gates import Gates, InputGates
from models.networks.ple import PLE, level_gates


class Body(PLE):
    def __init__(self, inputs: tuple[int, int], num_tasks: int, config: NetworkConfig) -> None:
        super().__init__(inputs, num_tasks, config)
        counts = (*config.task_experts(num_tasks), config.num_shared_experts)
        total = sum(counts)
        sees = level_gates(counts[:-1], counts[-1], last=False)
        sees[-1] = list(range(total - counts[-1], total))
        if config.levels > 1:
            self.gates = InputGates(sees, total, inputs, config)
        for level in list(self.levels)[:-1]:
            level.gates = Gates(sees, total, config.expert_hidden_units[-1], config)
