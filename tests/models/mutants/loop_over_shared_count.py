"""One loop, over the number of shared experts, makes the experts of the tasks too."""

from models.networks.config import NetworkConfig
from models.networks.ple import PLE


class Body(PLE):
    def __init__(self, inputs: tuple[int, int], num_tasks: int, config: NetworkConfig) -> None:
        shared = config.num_shared_experts
        super().__init__(inputs, num_tasks, config.model_copy(update={"num_task_experts": shared}))
