"""The gates of a network for the manifest: their names, and the experts that each of them sees.

The service shows what gates choose by these names; `RankingNetwork.gate_weights` computes it.
"""

from collections.abc import Sequence

from app.artifacts.manifest import MOST_GATE_WEIGHTS, GateLevel
from models.networks.cgc import task_gates
from models.networks.ple import level_gates
from models.training.experiment import Experiment


def gate_levels(experiment: Experiment) -> tuple[GateLevel, ...]:
    """Describe the levels of an experiment's network, in the order of its gate weights.

    Empty for a network without gates, and for one with more weights than a service observes.
    """
    network = experiment.network
    tasks = [task.name for task in experiment.tasks]
    levels: list[GateLevel] = []
    if network.body in ("moe", "mmoe"):
        gates = ["all"] if network.body == "moe" else tasks
        experts = [f"expert.{i}" for i in range(1, network.num_experts + 1)]
        levels = [_level(gates, experts, [range(len(experts))] * len(gates))]
    elif network.body in ("cgc", "ple"):
        own, shared = network.task_experts(len(tasks)), network.num_shared_experts
        common = "shared" if "shared" not in tasks else "shared by all"
        experts = [
            f"{owner}.{i}"
            for owner, count in zip([*tasks, common], [*own, shared], strict=True)
            for i in range(1, count + 1)
        ]
        if network.body == "cgc":
            levels = [_level(tasks, experts, task_gates(own, shared))]
        for number in range(1, network.levels + 1) if network.body == "ple" else ():
            sees = level_gates(own, shared, last=number == network.levels)
            levels.append(_level([*tasks, common][: len(sees)], experts, sees))
    return tuple(levels) if sum(level.cells for level in levels) <= MOST_GATE_WEIGHTS else ()


def _level(
    gates: Sequence[str], experts: Sequence[str], sees: Sequence[Sequence[int]]
) -> GateLevel:
    return GateLevel(gates=tuple(gates), experts=tuple(experts), sees=tuple(map(tuple, sees)))
