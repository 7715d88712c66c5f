"""Feature values in, input columns of the network out.

Features with the same embedding width share one table, in which each has a range of rows, so that
one gather looks all of them up. The columns of a side are ordered: dense features, ids, id lists;
within each group as declared, ids and lists by width first. A NaN in a dense value that the scaling
does not fill makes the outputs of that row NaN (of every row of that request, for a user feature)
and no others.
"""

from collections.abc import Mapping, Sequence
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
from models.networks.dense import DenseScaling


class Rows(NamedTuple):
    """The input ``x`` of every network, in two parts: the user part is computed once per request.

    Row ``b`` of ``x`` is ``[user[row_to_request[b]]; candidate[b]]``. With ``folded``, what the
    first layers make of the candidates is there already, and ``candidate`` is not read.
    """

    user: Tensor  # [R, D_user]
    candidate: Tensor  # [B, D_candidate]
    row_to_request: Tensor  # [B] int64, in 0 … R-1
    folded: Tensor | None = None  # [B, H], see :meth:`models.networks.build.RankingNetwork.fold`


class TableRange(NamedTuple):
    """The embeddings of a feature: ``size`` rows from ``first`` on in table ``table``."""

    table: int
    first: int
    size: int


class InputColumns(nn.Module):
    """The features of both sides as input columns, one matrix per side."""

    def __init__(self, features: Sequence[Feature]) -> None:
        super().__init__()
        owners = embedding_owners(features)
        embedded = [f for f in features if not isinstance(f, DenseFeature)]
        widths = sorted({f.embedding_dim for f in embedded})
        rows = [0] * len(widths)  # used so far in each table
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

    def fit(self, sample: Mapping[str, Tensor]) -> None:
        """Fit the scaling of dense features on raw training rows, ``[n, dim]`` by name."""
        for side in (self.user, self.candidate):
            if isinstance(side.scaling, DenseScaling):
                side.scaling.fit(sample)

    def defaults(self) -> dict[str, tuple[float, ...]]:
        """The value that stands for a missing dense feature, by name; fitted with `fit`."""
        defaults: dict[str, tuple[float, ...]] = {}
        for side in (self.user, self.candidate):
            if isinstance(side.scaling, DenseScaling):
                defaults |= side.scaling.defaults()
        return defaults

    def forward(
        self, user: dict[str, Tensor], candidate: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Columns ``[R, D_user]``, ``[B, D_candidate]``; ``[0, 0]`` of a side without features."""
        return self.of_users(user), self.of_candidates(candidate)

    def of_users(self, user: dict[str, Tensor]) -> Tensor:
        """Columns ``[R, D_user]``; ``[0, 0]`` without features."""
        columns: Tensor = self.user(user, self._list_tables())
        return columns

    def of_candidates(self, candidate: dict[str, Tensor]) -> Tensor:
        """Columns ``[B, D_candidate]``; ``[0, 0]`` without features."""
        columns: Tensor = self.candidate(candidate, self._list_tables())
        return columns

    def _list_tables(self) -> list[Tensor]:
        tables: list[Tensor] = []
        for table in self.tables:
            tables.append(table)  # noqa: PERF402 (TorchScript unrolls a ParameterList here only)
        return tables


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
        is_raw = all(f.is_raw for f in dense)
        self.scaling: nn.Module = nn.Identity() if is_raw else DenseScaling(dense)
        self.lookups = nn.ModuleList(
            IdLookup([f for f in ids if ranges[f.name].table == table], ranges)
            for table in sorted({ranges[f.name].table for f in ids})
        )
        self.lookups += [
            IdListLookup([f for f in lists if ranges[f.name].table == table], ranges)
            for table in sorted({ranges[f.name].table for f in lists})
        ]
        embedded = sum(f.embedding_dim for f in ids) + sum(f.embedding_dim for f in lists)
        self.width = sum(f.width for f in dense) + embedded

    def forward(self, values: dict[str, Tensor], tables: list[Tensor]) -> Tensor:
        """All columns of this side, ``[., width]``."""
        columns: list[Tensor] = []
        if len(self.dense) > 0:
            columns.append(self.scaling(torch.cat([values[name] for name in self.dense], 1)))
        for lookup in self.lookups:
            columns.append(lookup(values, tables))  # noqa: PERF401 (TorchScript unrolls this)
        if len(columns) == 0:
            return torch.zeros(0, 0)
        return torch.cat(columns, 1)  # [., width]


class IdLookup(nn.Module):
    """Look up the id features of one side that share a table."""

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
    """Look up the id-list features of one side that share a table; one product pools them."""

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
        self.register_buffer(
            "member", member, persistent=False
        )  # [n, ΣL]: the list of each position
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
    """For each id or id-list feature, the feature whose embedding table it uses (often itself).

    Raises:
        ValueError: two features have the same name, or ``shared_with`` names a feature that has
            no table, or whose table has another size.
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

    Column ``i`` has ``size[i]`` rows from ``first[i]`` on; an id outside that range takes the first
    row, the *unknown* id. A row of an int8 table is multiplied by its scale; the list then holds
    all tables followed by their scales ``[rows, 1]`` (:func:`models.export.precision.quantised`).
    """
    known = (ids >= 0) & (ids < size)  # [., n]
    row = torch.where(known, ids, 0) + first  # [., n]
    embedded = functional.embedding(row, tables[table])  # [., n, width]
    if tables[table].dtype != torch.int8:
        return embedded
    return embedded * functional.embedding(row, tables[table + len(tables) // 2])
