"""There are as many shared experts as a task has of its own, whatever was asked for."""

from models.networks.config import NetworkConfig
from models.networks.ple import PLE


class Body(PLE):
    def __init__(self, inputs: tuple[int, int], num_tasks: int, config: NetworkConfig) -> None:
        own = config.task_experts(num_tasks)[0]
        super().__init__(inputs, num_tasks, config.model_copy(update={"num_shared_experts": own}))
