"""Whether a file fits the schema: its columns are there, and of types that can be used so."""

from collections.abc import Iterator

import pyarrow as pa

from models.data import columns
from models.data.files import TableFile
from models.data.schema import (
    DataInvalid,
    DenseColumns,
    FilesConfig,
    IdentityIds,
    IdListColumn,
)
from models.data.table import needed


def check_types(file: TableFile, config: FilesConfig) -> None:
    """Check that a file has the columns of the schema, each of a type that fits its use.

    Raises:
        DataInvalid: with the first that does not.
    """
    for column, use in needed(config).items():
        if column not in file.kinds:
            known = ", ".join(map(repr, file.kinds))
            raise DataInvalid(f"{file.path}: has no column {column!r} for {use}; it has {known}")
    for column, use, must_be, fits in _expectations(file, config):
        if not fits and file.path.suffix != ".csv":
            kind = file.kinds[column]
            raise DataInvalid(f"{file.path}: column {column!r} is {kind}, {use} needs {must_be}")


def _expectations(file: TableFile, config: FilesConfig) -> Iterator[tuple[str, str, str, bool]]:
    """Column, what it is for, what it must be, and whether it is."""
    kinds = file.kinds
    for name in (config.group, config.user):
        fits = columns.is_text(kinds[name]) or pa.types.is_integer(kinds[name])
        yield name, "group or user", "strings or integers", fits
    for feature in config.features:
        use = f"feature {feature.name!r}"
        if isinstance(feature, DenseColumns):
            is_list = len(feature.columns) == 1 and feature.dim > 1
            for name in feature.columns:
                kind = columns.element_type(kinds[name]) if is_list else kinds[name]
                must_be = f"lists of {feature.dim} numbers" if is_list else "numbers"
                yield name, use, must_be, kind is not None and columns.is_number(kind)
            continue
        ids = config.ids(feature)
        wants_text = not isinstance(ids, IdentityIds) and ids.ids == "string"
        is_list = isinstance(feature, IdListColumn)
        kind = kinds[feature.column]
        kind = columns.element_type(kind) if is_list else kind
        fits = kind is not None and (
            columns.is_text(kind) if wants_text else pa.types.is_integer(kind)
        )
        must_be = ("lists of " if is_list else "") + ("strings" if wants_text else "integers")
        yield feature.column, use, must_be, fits
    for label in config.labels:
        for name in filter(None, (label.column, label.mask)):
            yield name, f"label {label.name!r}", "numbers", columns.is_number(kinds[name])
