"""Networks to try: features of every kind, tasks, inputs, a pairwise grid; examples, loaded."""

import copy
import functools
import io
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.networks.build import build
from models.networks.config import (
    Architecture,
    DenseFeature,
    Feature,
    IdFeature,
    IdListFeature,
    NetworkConfig,
    Task,
)

Values = dict[str, Tensor]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-2}
ARCHITECTURES: tuple[Architecture, ...] = (
    "single_task",
    "shared_bottom",
    "moe",
    "mmoe",
    "cgc",
    "ple",
    "esmm",
)
FEATURES: list[Feature] = [
    DenseFeature(name="age", side="user", dim=3),
    IdFeature(name="city", side="user", vocabulary_size=7, embedding_dim=4),
    IdListFeature(
        name="history",
        side="user",
        vocabulary_size=11,
        embedding_dim=4,
        max_length=5,
        shared_with="item",
    ),
    DenseFeature(name="price", side="candidate"),
    IdFeature(name="item", side="candidate", vocabulary_size=11, embedding_dim=4),
    IdFeature(name="brand", side="candidate", vocabulary_size=5, embedding_dim=2),
    IdListFeature(
        name="tags",
        side="candidate",
        vocabulary_size=6,
        embedding_dim=2,
        pooling="sum",
        max_length=3,
    ),
]
WIDTH = 3 + 4 + 4 + 1 + 4 + 2 + 2
DENSE: list[Feature] = [DenseFeature(name="x", side="candidate", dim=20)]


def tasks(num_tasks: int) -> list[Task]:
    """Click, like after click, dwell seconds, follow: the first ``num_tasks`` of them."""
    return [
        Task(name="click", kind="binary"),
        Task(name="like", kind="binary", sample_space="click"),
        Task(name="dwell", kind="duration"),
        Task(name="follow", kind="binary"),
    ][:num_tasks]


def small(architecture: Architecture, **changes: Any) -> NetworkConfig:
    """A network of a few units, of ``changes`` to the defaults."""
    fields: dict[str, Any] = {
        "expert_hidden_units": (12, 6),
        "tower_hidden_units": (5,),
        "num_experts": 4,
        "esmm_body": "ple",
    }
    return NetworkConfig(architecture=architecture, **(fields | changes))


@functools.cache
def example(architecture: Architecture, dtype: torch.dtype = torch.float32) -> Any:
    config = small(architecture, num_task_experts=(1, 2, 1), num_levels=3)
    return build(config, FEATURES, tasks(3), seed=1).to(dtype).eval()


@functools.cache
def loaded(architecture: Architecture, dtype: torch.dtype = torch.float32) -> Any:
    """The example, scripted, frozen, saved and loaded."""
    served = copy.deepcopy(example(architecture, dtype)).requires_grad_(False)
    frozen = torch.jit.freeze(torch.jit.script(served), preserved_attrs=["gate_weights"])
    file = io.BytesIO()
    torch.jit.save(frozen, file)
    file.seek(0)
    return torch.jit.load(file)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def values(
    num_requests: int, num_rows: int, seed: int = 0, features: Sequence[Feature] = FEATURES
) -> tuple[Values, Values, Tensor]:
    """The arguments of a forward call; ids, some of them unknown; lists of every length."""
    draw = torch.Generator().manual_seed(seed)
    sides: dict[str, Values] = {"user": {}, "candidate": {}}
    for feature in features:
        count = num_requests if feature.side == "user" else num_rows
        if isinstance(feature, DenseFeature):
            column = torch.randn(count, feature.dim, generator=draw)
        elif isinstance(feature, IdFeature):
            column = torch.randint(-2, feature.vocabulary_size + 2, (count,), generator=draw)
        else:
            shape = (count, feature.max_length)
            column = torch.randint(0, feature.vocabulary_size, shape, generator=draw)
            length = torch.randint(0, feature.max_length + 1, (count, 1), generator=draw)
            column[torch.arange(feature.max_length) >= length] = -1
        sides[feature.side][feature.name] = column
    row_to_request = torch.randint(0, max(1, num_requests), (num_rows,), generator=draw)
    return sides["user"], sides["candidate"], row_to_request


@dataclass(frozen=True)
class Case:
    """One point of the grid."""

    architecture: Architecture
    num_tasks: int
    experts: tuple[int, int]  # a task's own, shared
    num_levels: int
    num_rows: int
    dtype: torch.dtype
    gate_hidden_units: tuple[int, ...]

    @property
    def config(self) -> NetworkConfig:
        own, shared = self.experts
        return small(
            self.architecture,
            num_experts=own + shared,
            num_task_experts=own,
            num_shared_experts=shared,
            num_levels=self.num_levels,
            gate_hidden_units=self.gate_hidden_units,
        )

    @property
    def is_possible(self) -> bool:
        is_one_level = self.num_levels == 1 or self.experts[1] > 0
        return is_one_level and (self.architecture != "esmm" or self.num_tasks > 1)

    @property
    def every_gate_chooses(self) -> bool:
        """Whether each gate sees two experts or more: one that sees one has no gradient."""
        return sum(self.experts) > 1

    def __str__(self) -> str:
        own, shared = self.experts
        return (
            f"{self.architecture}-K{self.num_tasks}-m{own}+{shared}-N{self.num_levels}"
            f"-B{self.num_rows}-{str(self.dtype)[6:]}-g{len(self.gate_hidden_units)}"
        )


def pairwise() -> list[Case]:
    """Few cases in which every pair of choices that can meet does meet."""
    axes: list[tuple[Any, ...]] = [
        ARCHITECTURES,
        (1, 2, 3, 4),
        ((1, 1), (2, 3), (3, 1), (1, 3), (0, 2), (2, 0)),
        (1, 2, 3),
        (1, 2, 3, 257),
        (torch.float64, torch.float32),
        ((), (5,)),
    ]
    possible = [c for c in itertools.product(*axes) if Case(*c).is_possible]
    random.Random(0).shuffle(possible)
    pairs = {c: frozenset(itertools.combinations(enumerate(c), 2)) for c in possible}
    missing = set().union(*pairs.values())
    cases = []
    while missing:
        useful = (c for c in possible if not missing.isdisjoint(pairs[c]))
        best = max(itertools.islice(useful, 30), key=lambda c: len(missing & pairs[c]))
        missing -= pairs[best]
        cases.append(Case(*best))
    return cases


GRID = pairwise()
