"""Item and user tables in memory, with the interface of `app.artifacts.tables.Table`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from app.artifacts.columns import column_dtype, column_shape
from app.artifacts.manifest import Input, Manifest
from app.artifacts.model_tables import BoundTable, ModelTables
from app.protocol.features import encode_feature
from app.protocol.validation import Side, ValidationReport


@dataclass(eq=False)
class MemoryTable:
    """A table as plain arrays: the naive twin of the one on disk.

    Attributes:
        takes: how many rows were read by each call of `take`.
    """

    key: str
    keys_in_order: list[Any]
    records: np.ndarray
    unknown: str = "error"
    label: str = "1"
    key_type: type = int
    takes: list[int] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return len(self.keys_in_order)

    @property
    def columns(self) -> Sequence[str]:
        return self.records.dtype.names or ()

    def find(self, keys: Any) -> np.ndarray:
        places = {key: place for place, key in enumerate(self.keys_in_order)}
        listed = keys.tolist() if isinstance(keys, np.ndarray) else keys
        return np.array([places.get(each, -1) for each in listed], np.int64)

    def take(self, positions: np.ndarray) -> np.ndarray:
        self.takes.append(len(positions))
        return self.records[positions]

    def gather(self, name: str, positions: np.ndarray, out: Any = None) -> np.ndarray:
        assert out is None
        return self.records[name][positions]


def memory_table(
    manifest: Manifest,
    kind: str,
    key: str,
    rows: Mapping[Any, Mapping[str, Any]],
    **changes: Any,
) -> MemoryTable:
    """Return a table of JSON values, encoded as those of a request are."""
    features = manifest.user_inputs if kind == "users" else manifest.candidate_inputs
    held = [each for each in features if all(each.name in row for row in rows.values())]
    records = np.zeros(len(rows) + 1, _record(held))
    for feature in held:
        values = [row[feature.name] for row in rows.values()]
        records[feature.name][:-1] = _encoded(feature, values)
        if feature.default is not None:
            records[feature.name][-1:] = _encoded(feature, [feature.default])
    keys = list(rows)
    return MemoryTable(key, keys, records, key_type=type(keys[0]), **changes)


def _record(features: Sequence[Input]) -> np.dtype:
    return np.dtype([(f.name, column_dtype(f), column_shape(f, 1)[1:]) for f in features])


def _encoded(feature: Input, values: list[Any]) -> np.ndarray:
    report = ValidationReport()
    column = encode_feature(Side({feature.name: values}, len(values), "columns"), feature, {}, report)
    assert not report.problems, report.problems
    assert column is not None
    return column


def bound(
    manifest: Manifest, items: MemoryTable | None = None, users: MemoryTable | None = None
) -> ModelTables:
    """Return the tables of a model version."""
    made: Any = BoundTable
    return ModelTables(
        None if items is None else made.of(items, "items", manifest),
        None if users is None else made.of(users, "users", manifest),
    )
