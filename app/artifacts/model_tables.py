"""The item and user tables that one version of a model serves from.

A table has the features of many items or users, encoded as a request's are; a request names its
rows by their keys. `app.artifacts.tables` reads tables; here they meet a model.
"""

from collections.abc import Set
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from app.artifacts.encoding import Hashed
from app.artifacts.inputs import IdInput, Input
from app.artifacts.manifest import Description
from app.artifacts.program import Program
from app.artifacts.tables.description import TableKind, side_of
from app.artifacts.tables.keys import Int64
from app.artifacts.tables.table import Table


@dataclass(frozen=True, eq=False)
class BoundTable:
    """One version of a table, as one version of a model uses it.

    Attributes:
        table: it never changes: a new version or a delta is another object.
        kind: `items` or `users`.
        features: of the model on that side, in call order.
        folded_for: the program of the version, if it scores from the folded rows of the table.
        fold_problem: why it does not, if the table is folded for this version; "" otherwise.
    """

    table: Table
    kind: TableKind
    features: tuple[Input, ...]
    folded_for: Program | None = None
    fold_problem: str = ""

    @classmethod
    def of(
        cls,
        table: Table,
        kind: TableKind,
        description: Description,
        folded_for: Program | None = None,
        fold_problem: str = "",
    ) -> "BoundTable":
        """Bind a table to a version that it is compatible with."""
        is_of_users = kind == "users"
        features = description.user_inputs if is_of_users else description.candidate_inputs
        return cls(table, kind, features, folded_for, fold_problem)

    def folded_by(self, gathered: Set[str], positions: Int64) -> Program | None:
        """Return the program that may run rows from what is folded of them; None if none may.

        All features of the candidates must come from the table. The key is there as requests send
        it: its column may be either.

        Args:
            gathered: the features that come from the table.
            positions: of the rows, int64 `[n]`; the row of the defaults is not folded.
        """
        if self.folded_for is None or not len(positions) or positions.min() < 0:
            return None
        return self.folded_for if self.names - {self.table.key} <= gathered else None

    @cached_property
    def names(self) -> frozenset[str]:
        """The features of the model that the table has."""
        return frozenset(
            [feature.name for feature in self.features if feature.name in self.table.columns]
        )

    @cached_property
    def others(self) -> tuple[Input, ...]:
        """The features of the model that the table lacks: sent, or their default."""
        return tuple(feature for feature in self.features if feature.name not in self.names)

    @cached_property
    def is_complete(self) -> bool:
        """Whether a key alone makes a request: what the table lacks has a default."""
        return all(feature.default is not None for feature in self.others)

    @cached_property
    def accepted(self) -> frozenset[str]:
        """The names that a request may send on this side: features, and the key."""
        return frozenset([self.table.key, *(feature.name for feature in self.features)])

    @cached_property
    def key_input(self) -> Input:
        """The key as an input of the V2 protocol: the model's feature, or an id of any value."""
        for feature in self.features:
            if feature.name == self.table.key:
                return feature
        ids: Literal["string", "int64"] = "string" if self.table.key_type is str else "int64"
        encoding = Hashed(ids=ids, buckets=1)
        return IdInput(
            name=self.table.key, side=side_of(self.kind), vocabulary_size=2, encoding=encoding
        )


@dataclass(frozen=True, eq=False)
class ModelTables:
    """The tables of one version of a model; falsy without any."""

    items: BoundTable | None = None
    users: BoundTable | None = None

    def __bool__(self) -> bool:
        return self.items is not None or self.users is not None

    @property
    def all(self) -> tuple[BoundTable, ...]:
        """The tables that there are: items, then users."""
        return tuple(table for table in (self.items, self.users) if table is not None)


NO_TABLES = ModelTables()
