"""Small artifacts for tests: features of every kind, and modules with simple results.

`description()` describes the features that the module `Request` reads by name.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from app.artifacts.columns import Column, ModelInputs, column_shape
from app.artifacts.inputs import DenseInput, IdInput, IdListInput, Input
from app.artifacts.loader import Model, load
from app.artifacts.manifest import Description, FileDigest, Manifest, Output, TaskOutput
from app.artifacts.program import Program
from app.artifacts.publish import publish
from app.artifacts.store import GOLDEN, PROGRAM, Artifact, Store
from app.ranking.policies import NO_POLICIES, ModelPolicies
from app.ranking.policy import Policy

CPU = torch.device("cpu")

INPUTS: tuple[Input, ...] = (
    DenseInput(name="age", side="user"),
    IdListInput(name="recent", side="user", vocabulary_size=10, max_length=3, default=()),
    IdInput(name="item", side="candidate", vocabulary_size=10),
    DenseInput(name="quality", side="candidate", dim=2),
)


class Request(nn.Module):
    """[B, 2]: user's age and number of recent items minus item id; sum of the item's qualities."""

    def forward(
        self, user: dict[str, Tensor], candidate: dict[str, Tensor], row_to_request: Tensor
    ) -> Tensor:
        recent = (user["recent"] >= 0).sum(1).to(torch.float32)  # [R]
        once = 0.01 * user["age"][:, 0] + 0.1 * recent  # [R]
        click = once[row_to_request] - 0.1 * candidate["item"].to(torch.float32)  # [B]
        return torch.stack([click, candidate["quality"].sum(1)], dim=1)  # [B, 2]


class Folding(Request):
    """`Request`, whose part of the candidates may be folded; `error` is added to folded clicks."""

    def __init__(self, error: float = 0.0) -> None:
        super().__init__()
        self.error = error

    @torch.jit.export
    def fold(self, candidate: dict[str, Tensor]) -> Tensor:
        item = -0.1 * candidate["item"].to(torch.float32)
        return torch.stack([item, candidate["quality"].sum(1)], dim=1)  # [B, 2]

    @torch.jit.export
    def score_folded(
        self, user: dict[str, Tensor], folded: Tensor, row_to_request: Tensor
    ) -> Tensor:
        recent = (user["recent"] >= 0).sum(1).to(torch.float32)  # [R]
        once = 0.01 * user["age"][:, 0] + 0.1 * recent  # [R]
        click = once[row_to_request] + folded[:, 0] + self.error  # [B]
        return torch.stack([click, folded[:, 1]], dim=1)  # [B, 2]


class Company(nn.Module):
    """[B, 2]: invalid, because the result of a row depends on the other rows of its batch."""

    def forward(
        self, user: dict[str, Tensor], candidate: dict[str, Tensor], row_to_request: Tensor
    ) -> Tensor:
        quality = candidate["quality"] + user["age"][row_to_request]
        return quality - quality.mean(0)  # [B, 2]


def scripted(module: nn.Module) -> torch.jit.ScriptModule:
    script: torch.jit.ScriptModule = torch.jit.script(module.eval())
    return script


def task(name: str, **changes: Any) -> TaskOutput:
    fields: dict[str, Any] = {"kind": "regression", "unit": "", "link": "identity"}
    return TaskOutput(name=name, **(fields | changes))


def description(**changes: Any) -> Description:
    fields: dict[str, Any] = {
        "name": "feed",
        "architecture": "sums",
        "inputs": INPUTS,
        "tasks": (
            task("click", kind="binary", unit="probability", link="sigmoid"),
            task("dwell", kind="duration", unit="s", link="expm1", output=Output(column=1)),
        ),
        "ranking": Policy(weights={"click": 1.0, "dwell": 0.5}),
    }
    return Description(**(fields | changes))


def manifest(**changes: Any) -> Manifest:
    """Return a manifest whose files do not exist."""
    fields: dict[str, Any] = {
        "version": 1,
        "created": datetime(2026, 1, 1, tzinfo=UTC),
        "torch_version": torch.__version__,
    }
    own = {name: changes.pop(name) for name in tuple(changes) if name in Manifest.model_fields}
    everything = dict(description()) | fields | own
    files = {PROGRAM, GOLDEN, *Description.model_construct(**everything).vocabulary_files}
    digests = {"files": {name: FileDigest(sha256="0" * 64, size=0) for name in files}}
    return Manifest(**(digests | everything))


def own_policies(of: Manifest) -> ModelPolicies:
    """Return the ranking policies of a model on a server without a policies file."""
    return NO_POLICIES.policies_for(of.traits)


def batch(
    inputs: Sequence[Input] = INPUTS, sizes: Sequence[int] = (3, 1, 2), *, seed: int = 7
) -> ModelInputs:
    """Return random requests with the given numbers of candidates."""
    random = np.random.default_rng(seed)

    def columns(side: str, rows: int) -> dict[str, Column]:
        return {
            feature.name: _column(random, feature, rows)
            for feature in inputs
            if feature.side == side
        }

    row_to_request = np.repeat(np.arange(len(sizes)), sizes)
    return ModelInputs(
        columns("user", len(sizes)), columns("candidate", sum(sizes)), row_to_request
    )


def _column(random: np.random.Generator, feature: Input, rows: int) -> Column:
    shape = column_shape(feature, rows)
    if isinstance(feature, DenseInput):
        return random.normal(size=shape).astype(np.float32)
    return random.integers(0, feature.vocabulary_size, shape)


def program(module: nn.Module, **changes: Any) -> Program:
    return Program(scripted(module), description(**changes), CPU)


def published(folder: Path, module: nn.Module | None = None, **changes: Any) -> Artifact:
    """Publish a new version in the store at `folder`."""
    described = description(**changes)
    module = scripted(module or Request())
    return publish(Store(folder), described, module, batch(described.inputs))


def model(folder: Path, **changes: Any) -> Model:
    return load(published(folder, **changes), CPU)
