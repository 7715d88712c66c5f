"""What precomputing the first layer per item could bring: ``python -m tests.bench.first_layer``.

The first layer of a network is W_u·u + W_c·c + b. W_c·c depends on the item alone, so a table could
hold it ("fold"), and a request would add it to W_u·u. This prints, for networks of this repository:
the share of the multiplications that would be left out, the bytes per item that it would take, and
the time of 500 candidates as they are and with the candidates' part read from a table of 100,000
items. Rounds of both alternate; a cell is the median.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

CANDIDATES = 500
ITEMS = 100_000


@dataclass(frozen=True)
class Shape:
    """A mixture of experts on `user + item` columns, with linear gates and towers."""

    name: str
    user: int
    item: int
    experts: int
    hidden: Sequence[int]
    gates: int
    tower: Sequence[int]

    @property
    def columns(self) -> int:
        """The width of the first layer: all experts and gates read the same input."""
        return self.experts * self.hidden[0] + self.gates * self.experts

    def multiplications(self) -> tuple[int, int]:
        """Return the multiplications per candidate: in the item's part of layer one, and in all."""
        first = self.item * self.columns
        rest = sum(a * b for a, b in pairwise(self.hidden))
        towers = sum(
            a * b for a, b in zip((self.hidden[-1], *self.tower), (*self.tower, 1), strict=True)
        )
        mix = self.experts * self.hidden[-1]
        return first, first + self.experts * rest + self.gates * (towers + mix)


SHAPES = (
    Shape("reference: 8 experts 100-256-128-64", 0, 100, 8, (256, 128, 64), 3, (64,)),
    Shape("sizes of the demo: 5 experts 86-64-32-64-32", 52, 34, 5, (64, 32, 64, 32), 3, (16,)),
    Shape("wide items: 4 experts 528-64-32", 16, 512, 4, (64, 32), 3, (16,)),
)


class Mixture(nn.Module):
    """The network of a shape, from the first layer's sum on, and the first layer itself."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.of_user = nn.Linear(shape.user, shape.columns) if shape.user else None
        self.of_item = nn.Linear(shape.item, shape.columns, bias=False)
        widths = shape.hidden
        self.layers = nn.ParameterList(
            torch.randn(shape.experts, a, b) / a**0.5 for a, b in pairwise(widths)
        )
        sizes = (widths[-1], *shape.tower, 1)
        self.towers = nn.ModuleList(
            nn.Sequential(
                *(part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU()))
            )
            for _ in range(shape.gates)
        )

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.folded(user, self.of_item(item))

    def folded(self, user: Tensor, first: Tensor) -> Tensor:
        """Continue from the items' part of the first layer, `[B, columns]`."""
        if self.of_user is not None:
            first = first + self.of_user(user)
        experts, width = self.shape.experts, self.shape.hidden[0]
        split = experts * width
        hidden = first[:, :split].view(-1, experts, width).transpose(0, 1).relu()  # [K, B, width]
        for layer in self.layers:
            hidden = torch.bmm(hidden, layer).relu()
        weights = first[:, split:].view(-1, self.shape.gates, experts).softmax(2)  # [B, gates, K]
        mixed = torch.einsum("bgk,kbw->gbw", weights, hidden)
        outputs = [tower(x) for tower, x in zip(self.towers, mixed, strict=True)]
        return torch.cat(outputs, dim=1)


def medians_ms(works: Sequence[Callable[[int], object]], rounds: int) -> list[float]:
    """Return the median time (ms) of each piece of work; they alternate."""
    times: list[list[float]] = [[] for _ in works]
    for turn in range(rounds):
        for work, found in zip(works, times, strict=True):
            began = time.perf_counter()
            work(turn)
            found.append(time.perf_counter() - began)
    return [float(np.median(each[rounds // 10 :])) * 1e3 for each in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print("| network | left out | bytes per item, folded | 500 candidates, folded | faster |")
    print("| --- | --- | --- | --- | --- |")
    random = np.random.default_rng(0)
    with torch.inference_mode():
        for shape in SHAPES:
            network = Mixture(shape).eval()
            raw = torch.randn(ITEMS, shape.item)
            folded = network.of_item(raw)
            user = torch.randn(1, max(1, shape.user))
            picks = [
                torch.from_numpy(random.integers(0, ITEMS, CANDIDATES))
                for _ in range(options.rounds)
            ]
            assert torch.allclose(
                network(user, raw[picks[0]]), network.folded(user, folded[picks[0]]), atol=1e-4
            )
            plain_ms, folded_ms = medians_ms(
                (
                    lambda turn: network(user, raw.index_select(0, picks[turn])),  # noqa: B023
                    lambda turn: network.folded(user, folded.index_select(0, picks[turn])),  # noqa: B023
                ),
                options.rounds,
            )
            first, everything = shape.multiplications()
            print(
                f"| {shape.name} | {first / everything:.0%} of {everything:,} "
                f"| {4 * shape.item:,}, {4 * shape.columns:,} "
                f"| {plain_ms:.2f} ms, {folded_ms:.2f} ms | {plain_ms / folded_ms:.2f} x |"
            )


if __name__ == "__main__":
    main()
