"""How long a batch takes with MKL, with oneDNN and in bf16: ``python -m tests.bench.onednn``.

Networks of this repository with random parameters, loaded as a server loads them, on one thread. A
cell is the CPU time of a batch of one request (µs), the median of rounds in which the forms take
turns. "served" is float32 as a server runs it: large matrix products with oneDNN, small ones with
MKL, and batches padded to a few sizes (`app.artifacts.onednn`).
"""

import argparse
import io
import statistics
import time

import numpy as np
import torch
from torch import nn

from app.artifacts.columns import ModelInputs
from app.artifacts.inputs import DenseInput
from app.artifacts.loader import load_program
from app.artifacts.manifest import Description, TaskOutput
from app.artifacts.onednn import least_work
from app.artifacts.program import Program
from app.ranking.policy import Policy
from models.export.precision import reduced
from models.networks.build import build
from models.networks.config import DenseFeature, NetworkConfig, Task

ROWS = (1, 8, 50, 128, 500)
USER, CANDIDATE = 50, 50
TASKS = [Task(name=name, kind="binary") for name in ("click", "like", "follow")]
NETWORKS = {
    "MMoE, 8 experts 100-256-128-64": NetworkConfig(
        architecture="mmoe", num_experts=8, expert_hidden_units=(256, 128, 64)
    ),
    "PLE, 2 levels, 2 + 2 experts 256-128-64": NetworkConfig(
        architecture="ple", num_levels=2, expert_hidden_units=(256, 128, 64)
    ),
    "Shared-Bottom 100-1024-512-256": NetworkConfig(
        architecture="shared_bottom", expert_hidden_units=(1024, 512, 256)
    ),
    "MMoE of the demo's width, 5 experts 100-64-32-64-32": NetworkConfig(
        architecture="mmoe", num_experts=5, expert_hidden_units=(64, 32, 64, 32)
    ),
}


def programs(network: nn.Module) -> dict[str, Program]:
    """Return the forms of a network that are compared."""
    description = Description(
        name="bench",
        architecture="bench",
        inputs=(
            DenseInput(name="user", side="user", dim=USER),
            DenseInput(name="candidate", side="candidate", dim=CANDIDATE),
        ),
        tasks=tuple(
            TaskOutput(name=task.name, kind="binary", unit="probability", link="sigmoid")
            for task in TASKS
        ),
        ranking=Policy(weights={task.name: 1.0 for task in TASKS}),
    )
    full, half = content(network), content(reduced(network, "bf16"))
    cpu = torch.device("cpu")
    return {
        "MKL": load_program(full, description, cpu),
        "served": load_program(full, description, cpu, uses_onednn=True),
        "bf16": load_program(half, description, cpu, uses_onednn=True),
    }


def content(network: nn.Module) -> bytes:
    """Return a network as TorchScript."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(network.eval()), buffer)
    return buffer.getvalue()


def inputs(rows: int) -> ModelInputs:
    """Return a batch of one request."""
    random = np.random.default_rng(0)
    return ModelInputs(
        {"user": random.standard_normal((1, USER), np.float32)},
        {"candidate": random.standard_normal((rows, CANDIDATE), np.float32)},
        np.zeros(rows, np.int64),
    )


def cpu_us(forms: dict[str, Program], rows: int, rounds: int) -> dict[str, float]:
    """Return the CPU time of a batch in each form (µs)."""
    batch = inputs(rows)
    times: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(rounds + 5):  # the first ones compile
        for name, program in forms.items():
            began = time.thread_time()
            program.run(batch)
            if turn >= 5:
                times[name].append(time.thread_time() - began)
    return {name: statistics.median(took) * 1e6 for name, took in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    torch.get_num_threads()
    torch.set_num_threads(1)
    work = least_work()
    said = "not used" if work is None else f"from {work:,} multiplications of a product on"
    print(f"oneDNN in float32: {said}\n")
    print("| network | rows | MKL | served | gain | bf16 | gain |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, config in NETWORKS.items():
        features = [
            DenseFeature(name="user", side="user", dim=USER),
            DenseFeature(name="candidate", side="candidate", dim=CANDIDATE),
        ]
        forms = programs(build(config, features, TASKS, seed=0))
        for rows in ROWS:
            found = cpu_us(forms, rows, options.rounds)
            mkl, served, half = found["MKL"], found["served"], found["bf16"]
            print(
                f"| {name} | {rows} | {mkl:,.0f} | {served:,.0f} | {mkl / served:.2f} | "
                f"{half:,.0f} | {mkl / half:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
