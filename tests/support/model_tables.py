"""Item and user tables of a model, from plain values: in memory, and in a store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from app.artifacts.columns import column_dtype, column_shape
from app.artifacts.inputs import IdInput, Input
from app.artifacts.manifest import Manifest
from app.artifacts.model_tables import BoundTable, ModelTables
from app.artifacts.store import Artifact
from app.artifacts.tables.compatibility import vocabulary_digest
from app.artifacts.tables.description import TableColumn, TableKey, record_dtype
from app.artifacts.tables.listing import ListedTable
from app.artifacts.tables.publish import publish_delta, publish_table
from app.artifacts.tables.writer import TablePlan, TableWriter
from app.cli.table_fold import TableFold
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
        return np.array([places.get(key, -1) for key in listed], np.int64)

    def take(self, positions: np.ndarray) -> np.ndarray:
        self.takes.append(len(positions))
        taken: np.ndarray = self.records[positions]
        return taken

    def take_folded(self, positions: np.ndarray, out: np.ndarray) -> np.ndarray:  # noqa: ARG002
        raise AssertionError("a table in memory is not folded")

    def gather(self, name: str, positions: np.ndarray, out: Any = None) -> np.ndarray:
        assert out is None
        column: np.ndarray = self.records[name][positions]
        return column


def memory_table(
    manifest: Manifest,
    kind: str,
    key: str,
    rows: Mapping[Any, Mapping[str, Any]],
    **changes: Any,
) -> MemoryTable:
    """Return a table of JSON values, encoded as those of a request are."""
    features = manifest.user_inputs if kind == "users" else manifest.candidate_inputs
    held = [feature for feature in features if all(feature.name in row for row in rows.values())]
    records = np.zeros(len(rows) + 1, _record(held))
    for feature in held:
        values = [row[feature.name] for row in rows.values()]
        records[feature.name][:-1] = _encoded(feature, values)
        if feature.default is not None:
            records[feature.name][-1:] = _encoded(feature, [feature.default])
    keys = list(rows)
    return MemoryTable(key, keys, records, key_type=type(next(iter(keys), 0)), **changes)


def _record(features: Sequence[Input]) -> np.dtype:
    return np.dtype([(f.name, column_dtype(f), column_shape(f, 1)[1:]) for f in features])


def _encoded(feature: Input, values: list[Any]) -> np.ndarray:
    report = ValidationReport()
    column = encode_feature(
        Side({feature.name: values}, len(values), "columns"), feature, {}, report
    )
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


def publish_rows(
    store: Path,
    of: Manifest,
    kind: Any,
    key: str,
    rows: Mapping[Any, Mapping[str, Any]],
    fold: Artifact | None = None,
    **changes,
) -> ListedTable:
    """Publish a table of JSON values in a store, folded for a version if one is given."""
    return publish_table(*_plan(store, of, kind, key, rows, (), fold, changes))


def change_rows(
    store: Path,
    of: Manifest,
    kind: Any,
    key: str,
    rows: Mapping[Any, Mapping[str, Any]],
    removed: Sequence[Any] = (),
    fold: Artifact | None = None,
    **changes,
) -> ListedTable:
    """Publish a delta of the newest table."""
    return publish_delta(*_plan(store, of, kind, key, rows, removed, fold, changes))


def _plan(store, of, kind, key, rows, removed, fold, changes):
    table = memory_table(of, kind, key, rows)
    inputs = {feature.name: feature for feature in of.inputs}
    features = [inputs[name] for name in table.columns]
    records = np.zeros(len(table.records), record_dtype(features))
    for name in table.columns:
        records[name] = table.records[name]
    key_type = "int64" if table.key_type is int else "string"
    plan = TablePlan(
        model=store / of.name,
        kind=kind,
        key=TableKey(name=key, type=key_type),
        columns=tuple(
            TableColumn(feature=feature, vocabulary=vocabulary_digest(feature, of))
            for feature in features
        ),
        defaults=records[-1:],
        **changes,
    )

    def as_keys(keys: Sequence[Any]) -> Any:
        return np.array(keys, np.int64) if key_type == "int64" else list(keys)

    def fill(writer: TableWriter) -> None:
        writer.add(as_keys(table.keys_in_order), records[:-1])
        if removed:
            writer.remove(as_keys(removed))
        if fold is not None:
            TableFold.of(fold).fill(writer, lambda _: None)

    return plan, fill


def random_rows(
    of: Manifest, kind: str, keys: Sequence[Any], seed: int = 0
) -> dict[Any, dict[str, Any]]:
    """Return a row for each key; an id feature that could be the key has it as its value."""
    random = np.random.default_rng(seed)
    features = of.user_inputs if kind == "users" else of.candidate_inputs
    return {
        key: {feature.name: _value(feature, key, random) for feature in features} for key in keys
    }


def _value(feature: Input, key: Any, random: np.random.Generator) -> Any:
    if isinstance(feature, IdInput):
        named = feature.name in ("item_id", "user_id")
        return key if named else int(random.integers(feature.vocabulary_size))
    if feature.kind == "dense":
        return random.normal(size=feature.dim).astype(np.float32).tolist()
    count = int(random.integers(feature.max_length + 1))
    return random.integers(0, feature.vocabulary_size, count).tolist()
