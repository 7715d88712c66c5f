"""The items and the users of a table of impressions, for `gatehouse items publish` and `users`.

A row is one item, or one user, with its features under their names in the model and values as
requests have them: raw ids and numbers. The last row of the table counts, so a user's history is
the latest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from app.errors import did_you_mean
from models.data import arrow_columns
from models.data.scan import units_of
from models.data.schema import (
    DataInvalid,
    DenseColumns,
    FilesConfig,
    IdColumn,
    IdentityIds,
    IdListColumn,
    TableFeature,
)
from models.networks.config import Side

SIDES: Mapping[str, Side] = {"items": "candidate", "users": "user"}


def write(config: FilesConfig, folder: Path, keys: Mapping[str, str | None]) -> dict[Path, int]:
    """Write `items.parquet` and `users.parquet`; return the number of rows of each.

    A side without id features gets no file.

    Args:
        config: the table.
        folder: of the files; created if absent.
        keys: of `items` and `users`, the feature that identifies a row; None for the only id
            feature of that side or, of users, for the schema's `user`.

    Raises:
        DataInvalid: a key is no id feature, or the files do not match the schema.
    """
    last = {}
    for name, side in SIDES.items():
        features = [feature for feature in config.features if feature.side == side]
        if keys[name] is not None or any(isinstance(feature, IdColumn) for feature in features):
            last[name] = _LastRows(config, _key(config, name, features, keys[name]), features)
    columns = sorted({name for rows in last.values() for name in rows.columns})
    for unit in units_of(config):
        for chunk in unit.file.chunks(unit.number, columns):
            for rows in last.values():
                rows.add(chunk.table)
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, rows in last.items():
        table = rows.table()
        written[folder / f"{name}.parquet"] = int(table.num_rows)
        parquet.write_table(table, folder / f"{name}.parquet")
    return written


def _key(config: FilesConfig, what: str, features: list[TableFeature], key: str | None) -> IdColumn:
    ids = {feature.name: feature for feature in features if isinstance(feature, IdColumn)}
    if key is None and what == "users":
        key = next((name for name, column in ids.items() if column.column == config.user), None)
    if key is None and len(ids) == 1:
        (key,) = ids
    known, option = ", ".join(ids) or "none", f"--{what.removesuffix('s')}-key"
    if key is None:
        raise DataInvalid(f"choose the key of the {what} with {option} (id features: {known})")
    if key not in ids:
        raise DataInvalid(
            f'{option}: "{key}" is no id feature of the {what} (id features: {known})'
            f"{did_you_mean(key, ids)}"
        )
    return ids[key]


@dataclass(slots=True)
class _LastRows:
    """The last row of each key."""

    config: FilesConfig
    key: IdColumn
    features: list[TableFeature]
    _parts: list[pa.Table] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """The columns of the table that are read."""
        read = [e.columns if isinstance(e, DenseColumns) else (e.column,) for e in self.features]
        return [name for names in read for name in names]

    def add(self, chunk: pa.RecordBatch) -> None:
        """Take the rows of a chunk; rows without a key are left out."""
        columns = {feature.name: _values(chunk, feature, self.config) for feature in self.features}
        self._parts.append(self._deduplicated(pa.table(columns)))

    def table(self) -> pa.Table:
        """All rows, in the order in which their keys were last seen."""
        return self._deduplicated(pa.concat_tables(self._parts).combine_chunks())

    def _deduplicated(self, table: pa.Table) -> pa.Table:
        keys = table[self.key.name].to_pylist()
        last = {key: row for row, key in enumerate(keys) if key is not None}
        return table.take(pa.array(sorted(last.values()), pa.int64()))


def _values(chunk: pa.RecordBatch, feature: TableFeature, config: FilesConfig) -> pa.Array:
    """A feature as requests have it: a number or a vector, an id, a list of ids."""
    if isinstance(feature, DenseColumns):
        if len(feature.columns) == 1 and feature.dim > 1:
            values, _ = arrow_columns.dense_lists(
                chunk[feature.columns[0]], feature.separator, feature.dim, config.decimal
            )
        else:
            numbers = [
                arrow_columns.numbers(chunk[name], config.decimal)[0] for name in feature.columns
            ]
            values = np.stack(numbers, axis=1)  # [n, dim]
        flat = pa.array(values.reshape(-1), from_pandas=True)  # NaN is null
        return flat if feature.dim == 1 else pa.FixedSizeListArray.from_arrays(flat, feature.dim)
    ids = config.ids(feature)
    are_strings = not isinstance(ids, IdentityIds) and ids.ids == "string"
    if isinstance(feature, IdColumn):
        return _ids(chunk[feature.column], are_strings)
    return _id_lists(chunk[feature.column], feature, are_strings)


def _ids(array: pa.Array, are_strings: bool) -> pa.Array:
    if are_strings:
        return array.cast(pa.string())
    values, null, wrong = arrow_columns.integers(array)
    return pa.array(values, mask=null | wrong)


def _id_lists(array: pa.Array, feature: IdListColumn, are_strings: bool) -> pa.Array:
    elements, lengths = arrow_columns.lists(array, feature.separator)
    kept = np.minimum(lengths, feature.max_length)
    starts = np.cumsum(lengths) - lengths
    place = np.arange(int(kept.sum())) - np.repeat(np.cumsum(kept) - kept, kept)
    taken = _ids(elements, are_strings).take(pa.array(np.repeat(starts, kept) + place))
    offsets = np.concatenate([[0], np.cumsum(kept)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), taken)
