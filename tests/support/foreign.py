"""Traced modules as third parties write them, and the arguments of `gatehouse import` for each.

They have the three common input layouts: one matrix that contains ids as floats, one tensor per
feature, and a dict of tensors. None of them distinguishes users from candidates.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Values = dict[str, Any]


class Towers(nn.Module):
    """Experts mixed by one gate per task; each tower returns [B, 1]."""

    def __init__(self, width: int, tasks: int = 2) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 8), nn.BatchNorm1d(8), nn.ReLU()) for _ in range(3)
        )
        self.gates = nn.ModuleList(nn.Linear(width, 3) for _ in range(tasks))
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Dropout(0.1), nn.Linear(4, 1))
            for _ in range(tasks)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        experts = torch.stack([expert(x) for expert in self.experts], 1)  # [B, 3, 8]
        return [
            tower((torch.softmax(gate(x), 1).unsqueeze(2) * experts).sum(1))
            for gate, tower in zip(self.gates, self.towers, strict=True)
        ]


class Matrix(nn.Module):
    """Input [B, 5]: age, gender as a float, price, item as a float, mood. Output: two [B, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.gender, self.item = nn.Embedding(3, 2), nn.Embedding(50, 4)
        self.towers = Towers(9)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gender, item = self.gender(x[:, 1].long()), self.item(x[:, 3].long())
        dense = torch.cat([x[:, :1], x[:, 2:3], x[:, 4:]], dim=-1)
        click, dwell = self.towers(torch.cat([dense, gender, item], dim=-1))
        return torch.sigmoid(click), dwell


class Tensors(nn.Module):
    """Input: one tensor per feature, histories padded with 0 on the left. Output: logits [B, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(20, 4), nn.Embedding(30, 4, padding_idx=0)
        self.towers = Towers(14, tasks=3)

    def forward(self, user: Tensor, history: Tensor, item: Tensor, dense: Tensor) -> Tensor:
        seen = (history != 0).unsqueeze(2).float()  # [B, L, 1]
        pooled = (self.item(history) * seen).sum(1) / (seen.sum(1) + 1e-9)  # [B, 4]
        x = torch.cat([self.user(user), pooled, self.item(item), dense], dim=1)
        return torch.cat(self.towers(x), dim=1)


class Named(nn.Module):
    """Input: a dict of tensors. Output: a dict of [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.city, self.brand = nn.Embedding(7, 3), nn.Embedding(9, 3)
        self.towers = Towers(9)

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        city, brand = (
            self.city(x["city"].squeeze(1).long()),
            self.brand(x["brand"].squeeze(1).long()),
        )
        click, value = self.towers(torch.cat([city, brand, x["numbers"]], dim=1))
        return {"value": value.squeeze(1), "hidden": brand, "click": click.squeeze(1)}


def traced(module: nn.Module, *example: object, path: Path, seed: int = 0) -> Path:
    """Trace a module with random batch statistics, and save it."""
    torch.manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d):
            nn.init.normal_(layer.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(layer.running_var, 0.5, 2)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(module, example, strict=False, check_trace=False), path)
    return path


MATRIX_FLAGS = (
    *("--name", "matrix", "--columns", "age,gender@3,price,item@50,mood"),
    *("--user", "age,gender,mood", "--tasks", "click:probability,dwell:log1p-seconds"),
)

TENSORS = """
name = "tensors"
architecture = "MMoE of a blog"

[[inputs]]
name = "user_id"
side = "user"
kind = "id"
vocabulary_size = 20
unknown = 0

[[inputs]]
name = "recent"
side = "user"
kind = "id_list"
vocabulary_size = 30
max_length = 4
padding = 0
padding_side = "left"

[[inputs]]
name = "item_id"
side = "candidate"
kind = "id"
vocabulary_size = 30

[[inputs]]
name = "quality"
side = "candidate"
kind = "dense"
dim = 2

[[arguments]]
name = "user"
pack = ["user_id"]
dtype = "int64"
rank = 1

[[arguments]]
name = "history"
pack = ["recent"]
dtype = "int64"

[[arguments]]
name = "item"
pack = ["item_id"]
dtype = "int64"
rank = 1

[[arguments]]
name = "dense"
pack = ["quality"]
dtype = "float32"

[[tasks]]
name = "like"
gives = "logit"
output = { column = 2 }

[[tasks]]
name = "dwell"
gives = "log-seconds"
clamp = [0.0, 600.0]
output = { column = 0 }
"""

NAMED = """
name = "named"
style = "dict"
ranges = { numbers = [0, 1] }
ranking = { formula = "weighted_sum", weights = { click = 1.0, value = 0.1 } }

[[inputs]]
name = "city"
side = "user"
kind = "id"
vocabulary_size = 7
default = 3

[[inputs]]
name = "brand"
side = "candidate"
kind = "id"
vocabulary_size = 9

[[inputs]]
name = "numbers"
side = "candidate"
kind = "dense"
dim = 3

[[arguments]]
name = "city"
pack = ["city"]
dtype = "float32"

[[arguments]]
name = "brand"
pack = ["brand"]
dtype = "int64"

[[arguments]]
name = "numbers"
pack = ["numbers"]
dtype = "float32"

[[tasks]]
name = "click"
gives = "logit"

[[tasks]]
name = "value"
gives = "number"
"""


STRINGS = (
    NAMED.replace('name = "named"', 'name = "strings"')
    .replace("default = 3", 'encoding = { kind = "hash", buckets = 6 }')
    .replace(
        "vocabulary_size = 9",
        'encoding = { kind = "vocabulary", file = "vocabulary.brand.jsonl" }\nvocabulary_size = 9',
    )
)
"""The description of `Named` with string ids."""


def matrix_file(folder: Path) -> Path:
    return traced(Matrix().eval(), torch.ones(4, 5), path=folder / "matrix.pt")


def tensors_file(folder: Path) -> Path:
    ids = torch.ones(4, dtype=torch.int64)
    example = (ids, ids.unsqueeze(1).expand(4, 4), ids, torch.ones(4, 2))
    return traced(Tensors().eval(), *example, path=folder / "tensors.pt")


def named_file(folder: Path) -> Path:
    ids = torch.ones(4, 1, dtype=torch.int64)
    example = {"city": ids.float(), "brand": ids, "numbers": torch.ones(4, 3)}
    return traced(Named().eval(), example, path=folder / "named.pt")
