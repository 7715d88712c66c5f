"""Compare stacked experts with a loop over experts: ``python -m tests.bench.fused``.

Both forms are scripted and frozen, have the same weights and run alternately. Each cell is the
median of the ratios loop time / fused time, so noise that lasts longer than one turn cancels out.
Above 1, the fused form is faster.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.networks.build import build
from models.networks.config import DenseFeature, NetworkConfig, Task
from tests.models.loop import loop_of

Values = dict[str, Tensor]
Form = Callable[[Values, Values, Tensor], Tensor]

ROWS = (1, 8, 32, 128, 512, 2048)
WIDTH = 100
NETWORKS = {
    "MMoE 8 experts": NetworkConfig(
        architecture="mmoe", num_experts=8, expert_hidden_units=(256, 128, 64)
    ),
    "PLE 2 levels, 2 + 2 experts": NetworkConfig(
        architecture="ple", num_levels=2, expert_hidden_units=(256, 128, 64)
    ),
}
TASKS = [Task(name=name, kind="binary") for name in ("click", "like", "follow")]


class LoopOfColumns(nn.Module):
    """A loop over experts with the signature of a network."""

    def __init__(self, loop: nn.Module) -> None:
        super().__init__()
        self.loop = loop
        self.weight_dtype = next(loop.parameters()).dtype

    def forward(
        self,
        user: dict[str, Tensor],  # noqa: ARG002
        candidate: dict[str, Tensor],
        row_to_request: Tensor,  # noqa: ARG002
    ) -> Tensor:
        outputs: Tensor = self.loop(candidate["x"].to(self.weight_dtype))
        return outputs.float()


def frozen(module: nn.Module, device: str) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted: torch.jit.ScriptModule = torch.jit.freeze(
            torch.jit.script(module.eval().to(device))
        )
        return scripted


def pair(config: NetworkConfig, dtype: torch.dtype, device: str) -> tuple[Form, Form]:
    """Return the loop and the fused network, both as they would be served."""
    features = [DenseFeature(name="x", side="candidate", dim=WIDTH)]
    network = build(config, features, TASKS, seed=0).to(dtype)
    loop = loop_of(config, network.body, WIDTH, len(TASKS))
    return frozen(LoopOfColumns(loop), device), frozen(network, device)


def seconds(form: Form, x: Tensor, calls: int) -> float:
    rows = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    start = time.perf_counter()
    for _ in range(calls):
        form({}, {"x": x}, rows)
    if x.is_cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


@torch.inference_mode()
def ratio(loop: Form, fused: Form, rows: int, turns: int, device: str) -> tuple[float, float]:
    """Return loop time / fused time, and the time of the fused form (µs)."""
    x = torch.randn(rows, WIDTH, device=device)
    calls = max(1, 256 // rows)
    seconds(loop, x, 5)  # compile and warm up
    seconds(fused, x, 5)
    times = [(seconds(loop, x, calls), seconds(fused, x, calls)) for _ in range(turns)]
    ratios = [slow / fast for slow, fast in times]
    return statistics.median(ratios), statistics.median(fast for _, fast in times) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=31)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--threads", type=int, nargs="+", default=(1, 2))
    options = parser.parse_args()
    print("Loop time / fused time (fused, µs a call)\n")
    print("| network | where | dtype |", " | ".join(f"{rows} rows" for rows in options.rows), "|")
    print("| --- | --- | --- |" + " ---: |" * len(options.rows))
    places = [("cpu", threads) for threads in options.threads]
    places += [("cuda", 1)] if torch.cuda.is_available() else []
    for name, config in NETWORKS.items():
        for device, threads in places:
            torch.set_num_threads(threads)
            where = device if device == "cuda" else f"cpu, {threads} thread(s)"
            for dtype in (torch.float32, torch.bfloat16):
                forms = pair(config, dtype, device)
                cells = [ratio(*forms, rows, options.turns, device) for rows in options.rows]
                text = " | ".join(f"{gain:.2f} ({micros:.0f})" for gain, micros in cells)
                print(f"| {name} | {where} | {str(dtype)[6:]} | {text} |", flush=True)


if __name__ == "__main__":
    main()
