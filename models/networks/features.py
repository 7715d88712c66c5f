"""Feature values in, input columns out: dense values as they are, ids by their embeddings.

Features of one embedding width share one table, in which each owns a range of rows: looking all
of them up is then one gather, however many there are. A side's columns stand in this order: dense
features, ids, id lists; within each as declared, ids and lists by width. A NaN in a dense value
makes the outputs of that row NaN (of every row of that request, on the user side), and no others.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.config import (
    DenseFeature,
    Feature,
    IdFeature,
    IdListFeature,
    Side,
    check_unique,
)


class Rows(NamedTuple):
    """The input ``x`` of every network, in two parts so that the user's is computed once.

    Row ``b`` of ``x`` is ``[user[row_to_request[b]]; candidate[b]]``.
    """

    user: Tensor  # [R, D_user]
    candidate: Tensor  # [B, D_candidate]
    row_to_request: Tensor  # [B] int64, in 0 … R-1


class TableRange(NamedTuple):
    """Where a feature's embeddings stand: ``size`` rows from ``first`` in table ``table``."""

    table: int
    first: int
    size: int


class InputColumns(nn.Module):
    """Every feature of both sides, as one row of columns a side."""

    def __init__(self, features: Sequence[Feature]) -> None:
        super().__init__()
        owners = embedding_owners(features)
        embedded = [f for f in features if not isinstance(f, DenseFeature)]
        widths = sorted({f.embedding_dim for f in embedded})
        rows = [0] * len(widths)  # of each table, so far
        ranges: dict[str, TableRange] = {}
        for f in embedded:
            if owners[f.name] == f.name:
                table = widths.index(f.embedding_dim)
                ranges[f.name] = TableRange(table, rows[table], f.vocabulary_size)
                rows[table] += f.vocabulary_size
        ranges |= {name: ranges[owner] for name, owner in owners.items()}
        self.tables = nn.ParameterList(
            nn.Parameter(torch.empty(count, width).normal_(std=width**-0.5))  # [rows, width]
            for count, width in zip(rows, widths, strict=True)
        )
        self.user = SideColumns("user", features, ranges)
        self.candidate = SideColumns("candidate", features, ranges)

    def forward(
        self, user: dict[str, Tensor], candidate: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Columns ``[R, D_user]``, ``[B, D_candidate]``; ``[0, 0]`` of a side without features."""
        tables: list[Tensor] = []
        for table in self.tables:
            tables.append(table)  # noqa: PERF402 (TorchScript unrolls a ParameterList here only)
        return self.user(user, tables), self.candidate(candidate, tables)


class SideColumns(nn.Module):
    """The features of one side; ``width`` is the number of its columns."""

    dense: list[str]

    def __init__(
        self, side: Side, features: Sequence[Feature], ranges: dict[str, TableRange]
    ) -> None:
        super().__init__()
        mine = [f for f in features if f.side == side]
        dense = [f for f in mine if isinstance(f, DenseFeature)]
        ids = [f for f in mine if isinstance(f, IdFeature)]
        lists = [f for f in mine if isinstance(f, IdListFeature)]
        self.dense = [f.name for f in dense]
        self.lookups = nn.ModuleList(
            IdLookup([f for f in ids if ranges[f.name].table == table], ranges)
            for table in sorted({ranges[f.name].table for f in ids})
        )
        self.lookups += [
            IdListLookup([f for f in lists if ranges[f.name].table == table], ranges)
            for table in sorted({ranges[f.name].table for f in lists})
        ]
        embedded = sum(f.embedding_dim for f in ids) + sum(f.embedding_dim for f in lists)
        self.width = sum(f.dim for f in dense) + embedded

    def forward(self, values: dict[str, Tensor], tables: list[Tensor]) -> Tensor:
        """All columns of this side, ``[., width]``."""
        columns = [values[name] for name in self.dense]
        for lookup in self.lookups:
            columns.append(lookup(values, tables))  # noqa: PERF401 (TorchScript unrolls this)
        if len(columns) == 0:
            return torch.zeros(0, 0)
        return torch.cat(columns, 1)  # [., width]


class IdLookup(nn.Module):
    """The id features of one side that share a table."""

    names: list[str]
    first: Tensor
    size: Tensor

    def __init__(self, features: Sequence[IdFeature], ranges: dict[str, TableRange]) -> None:
        super().__init__()
        self.names = [f.name for f in features]
        self.table = ranges[self.names[0]].table
        first = torch.tensor([ranges[name].first for name in self.names])
        size = torch.tensor([ranges[name].size for name in self.names])
        self.register_buffer("first", first, persistent=False)  # [n]
        self.register_buffer("size", size, persistent=False)  # [n]

    def forward(self, values: dict[str, Tensor], tables: list[Tensor]) -> Tensor:
        """Embeddings of int64 ids ``[.]``, beside each other: ``[., n·width]``."""
        ids = torch.stack([values[name] for name in self.names], 1)  # [., n]
        return embed(ids, self.first, self.size, tables, self.table).flatten(1)  # [., n·width]


class IdListLookup(nn.Module):
    """The id-list features of one side that share a table, pooled by one product."""

    names: list[str]
    first: Tensor
    size: Tensor
    member: Tensor
    is_mean: Tensor

    def __init__(self, features: Sequence[IdListFeature], ranges: dict[str, TableRange]) -> None:
        super().__init__()
        self.names = [f.name for f in features]
        self.table = ranges[self.names[0]].table
        lengths = torch.tensor([f.max_length for f in features])
        first = torch.tensor([ranges[name].first for name in self.names])
        size = torch.tensor([ranges[name].size for name in self.names])
        member = torch.eye(len(features), dtype=torch.bool).repeat_interleave(lengths, 1)
        is_mean = torch.tensor([f.pooling == "mean" for f in features])
        self.register_buffer("first", first.repeat_interleave(lengths), persistent=False)  # [ΣL]
        self.register_buffer("size", size.repeat_interleave(lengths), persistent=False)  # [ΣL]
        self.register_buffer("member", member, persistent=False)  # [n, ΣL]: whose position it is
        self.register_buffer("is_mean", is_mean.unsqueeze(1), persistent=False)  # [n, 1]

    def forward(self, values: dict[str, Tensor], tables: list[Tensor]) -> Tensor:
        """Pooled embeddings of int64 lists ``[., max_length]``: ``[., n·width]``."""
        ids = torch.cat([values[name] for name in self.names], 1)  # [., ΣL]
        embeddings = embed(ids, self.first, self.size, tables, self.table)  # [., ΣL, width]
        present = self.member & (ids != -1).unsqueeze(1)  # [., n, ΣL]
        count = present.sum(2, keepdim=True)  # [., n, 1]
        divisor = torch.where(self.is_mean, count, 1).clamp(min=1)  # an empty list pools to zero
        weights = present.to(embeddings.dtype) / divisor  # [., n, ΣL]
        return torch.bmm(weights, embeddings).flatten(1)  # [., n·width]


def embedding_owners(features: Sequence[Feature]) -> dict[str, str]:
    """For each id or id-list feature, the feature whose embedding table it uses (mostly itself).

    Raises:
        ValueError: two features have one name, or ``shared_with`` names a feature that has no
            table of its own, or one of another vocabulary or width.
    """
    check_unique("features", (feature.name for feature in features))
    tables = {f.name: f for f in features if not isinstance(f, DenseFeature)}
    owners: dict[str, str] = {}
    for feature in tables.values():
        owner = tables.get(feature.shared_with or feature.name)
        if owner is None or owner.shared_with is not None:
            raise ValueError(
                f"shared_with: {feature.shared_with!r} of {feature.name!r} has no table of its own"
            )
        size = (feature.vocabulary_size, feature.embedding_dim)
        if size != (owner.vocabulary_size, owner.embedding_dim):
            raise ValueError(
                f"shared_with: {feature.name!r} and {owner.name!r} must agree in "
                "vocabulary_size and embedding_dim"
            )
        owners[feature.name] = owner.name
    return owners


def embed(ids: Tensor, first: Tensor, size: Tensor, tables: list[Tensor], table: int) -> Tensor:
    """Rows of ``tables[table]`` ``[rows, width]`` for ``ids`` ``[., n]``, as ``[., n, width]``.

    Column ``i`` owns ``size[i]`` rows from ``first[i]``; an id outside them takes the first,
    which means *unknown*. The row of an int8 table is multiplied by its scale: behind the tables
    stand as many of scales, ``[rows, 1]`` (:func:`models.export.precision.quantised`).
    """
    known = (ids >= 0) & (ids < size)  # [., n]
    row = torch.where(known, ids, 0) + first  # [., n]
    found = functional.embedding(row, tables[table])  # [., n, width]
    if tables[table].dtype != torch.int8:
        return found
    return found * functional.embedding(row, tables[table + len(tables) // 2])
