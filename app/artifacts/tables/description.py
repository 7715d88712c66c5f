"""`table.json`: what a table holds, and which versions of a model it fits.

A table has these files, all little-endian:

| file | content |
| --- | --- |
| `table.json` | one `TableDescription` |
| `rows` | `rows + 1` records of one size; the last one is the row of the defaults |
| `keys` | the keys in the order of their hashes: int64, or UTF-8 in 64-bit words |
| `keys.rows` | int32: the row of each key in `keys`; -1 in a delta: the key is removed |
| `keys.starts` | uint32 `[2^bits + 1]`: where the keys of each bucket start in `keys` |
| `keys.hashes` | string keys only, uint64: the hash of each key |
| `keys.places` | string keys only, int64: the first word of each key · 2^16 + its bytes |
| `folded` | only if the table is folded, float32 `[rows, H]`: what `fold` makes of each row |

A record holds the id features (int64), then the dense features (float32), each in the order of
`columns`, and zeros up to a multiple of 8 bytes. Values are stored as the model takes them: ids
are rows of an embedding table, lists are padded. So nothing is converted when a table is loaded,
and all processes of a host share its memory. The price: a table belongs to the encodings that it
was made with. `columns` keeps each feature's entry of the manifest and the SHA-256 of its
vocabulary, and a model version with another entry or vocabulary does not get the table.

`folded` holds for one program, that of `fold` in `table.json`, and serves that one only; every
other version computes the same from `rows`.

Records, not one file per column: 500 random rows of 64 numbers in a table of 1 M rows take 13 µs
from records and 180 µs from 64 columns, because a record is a few cache lines in one place.
"""

import math
from collections.abc import Collection, Mapping
from datetime import datetime
from functools import cached_property
from typing import Annotated, Final, Literal, Self

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import Field, model_validator

from app.artifacts.columns import Column, column_dtype, column_shape
from app.artifacts.encoding import Listed
from app.artifacts.manifest import (
    MOST_FOLDED,
    DenseInput,
    IdInput,
    IdListInput,
    Input,
    Manifest,
    Name,
    Value,
)
from app.artifacts.store import LARGEST_VERSION

TABLE: Final = "table.json"
ROWS: Final = "rows"
KEYS: Final = "keys"
KEY_ROWS: Final = "keys.rows"
KEY_STARTS: Final = "keys.starts"
KEY_HASHES: Final = "keys.hashes"
KEY_PLACES: Final = "keys.places"
FOLDED: Final = "folded"

PIECE = 64 * 2**20
"""Bytes of a file that have a digest of their own, so that several threads can hash one file."""
MOST_ROWS = 2**31 - 2
_LARGEST_RECORD = 2**24  # bytes
_LONGEST_VALUE = 100  # characters of a manifest entry that a message repeats

TableKind = Literal["items", "users"]
KeyType = Literal["int64", "string"]
UnknownPolicy = Literal["error", "default", "drop"]

_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Version = Annotated[int, Field(ge=1, le=LARGEST_VERSION)]
FileName = Literal[
    "rows", "keys", "keys.rows", "keys.starts", "keys.hashes", "keys.places", "folded"
]


class Pieces(Value):
    """The size of a file (bytes), and the SHA-256 of each `PIECE` of it."""

    size: int = Field(ge=0)
    sha256: tuple[_Sha256, ...]

    @model_validator(mode="after")
    def _every_piece_has_a_digest(self) -> Self:
        expected = -(-self.size // PIECE)
        if len(self.sha256) != expected:
            raise ValueError(f"has {len(self.sha256)} digests, {self.size} bytes need {expected}")
        return self


class TableColumn(Value):
    """A feature of the table: its entry in the manifest, and the digest of its vocabulary.

    `measured` says that the model derives something from the list, so that its padding was refused
    among the ids.
    """

    feature: Input
    vocabulary: _Sha256 | None = None
    measured: bool = False

    @model_validator(mode="after")
    def _feature_is_measured(self) -> Self:
        if isinstance(self.feature, IdListInput):
            if self.measured:
                object.__setattr__(self, "feature", self.feature.measured())  # frozen
            else:
                object.__setattr__(self, "measured", self.feature.reserves_padding)
        return self


class TableKey(Value):
    """The feature, or other name, by which requests name a row."""

    name: Name
    type: KeyType


class Fold(Value):
    """The program whose first layers' part of each row is in the file `folded`.

    Attributes:
        version: of the model.
        program: the SHA-256 of its `model.ts`.
        width: H, the numbers of a row.
    """

    version: _Version
    program: _Sha256
    width: int = Field(ge=1, le=MOST_FOLDED)

    def serves(self, manifest: Manifest) -> bool:
        """Whether this is the program of a version; its number may differ, as in a copy."""
        is_same = manifest.files["model.ts"].sha256 == self.program
        return is_same and manifest.folded_width == self.width


class Base(Value):
    """The table that a delta changes; `id` tells apart two tables with the same number."""

    version: _Version
    id: str = Field(pattern=r"^[0-9a-f]{32}$")


class TableDescription(Value):
    """`table.json`.

    Attributes:
        format: of this file and those beside it.
        kind: whose features they are.
        model: the model's name.
        version: the number of the table; of a delta, its number among the deltas of its table.
        base: of a delta, the table that it changes; None for a table.
        id: random, 128 bits in hexadecimal.
        key: names a row.
        rows: how many rows there are, without the row of the defaults.
        removed: how many keys a delta removes.
        bits: there are `2^bits` buckets of keys.
        seed: of the hash of the keys.
        columns: the features.
        sent: features that are not in the table, because every request sends them.
        unknown: what happens to a request with a key that is not in the table.
        max_age_s: the age (s) from which on the newest data is too old to serve; None for no limit.
        fold: what the file `folded` holds; None without it. Only tables of items have it.
        created: when the table was published.
        source: the file that it was made of, for people.
        files: the digests of the other files.
    """

    format: Literal[1] = 1
    kind: TableKind
    model: Name
    version: _Version
    base: Base | None = None
    id: str = Field(pattern=r"^[0-9a-f]{32}$")
    key: TableKey
    rows: int = Field(ge=0, le=MOST_ROWS)
    removed: int = Field(default=0, ge=0, le=MOST_ROWS)
    bits: int = Field(ge=1, le=32)
    seed: int = Field(ge=0, lt=2**32)
    columns: tuple[TableColumn, ...] = Field(min_length=1)
    sent: tuple[Name, ...] = ()
    unknown: UnknownPolicy = "error"
    max_age_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    fold: Fold | None = None
    created: datetime
    source: str = Field(default="", max_length=1024)
    files: dict[FileName, Pieces]

    @model_validator(mode="after")
    def _columns_are_distinct_and_of_one_side(self) -> Self:
        side = side_of(self.kind)
        names = [each.feature.name for each in self.columns]
        if len(set(names)) < len(names):
            raise ValueError("two columns have the same name")
        if wrong := [each.feature.name for each in self.columns if each.feature.side != side]:
            raise ValueError(f'column "{wrong[0]}" is not a {side} feature')
        for each in self.columns:
            listed = not isinstance(each.feature, DenseInput) and isinstance(
                each.feature.encoding, Listed
            )
            if listed != (each.vocabulary is not None):
                raise ValueError(f'column "{each.feature.name}": digest of the vocabulary')
        return self

    @model_validator(mode="after")
    def _files_have_their_sizes(self) -> Self:
        if self.removed and self.base is None:
            raise ValueError("removed: only a delta removes keys")
        if self.fold is not None and self.kind != "items":
            raise ValueError("fold: only tables of items are folded")
        sizes = self._sizes()
        if self.files.keys() != sizes.keys():
            raise ValueError(f"files: must be {', '.join(sizes)}")
        for name, size in sizes.items():
            if size is not None and self.files[name].size != size:
                raise ValueError(f"files: {name} must have {size} bytes")
        return self

    def _sizes(self) -> Mapping[FileName, int | None]:
        """Return the size of each file (bytes); None for one that depends on the keys."""
        entries = self.entries
        sizes: dict[FileName, int | None] = {
            "rows": (self.rows + 1) * self.record.itemsize,
            "keys.rows": 4 * entries,
            "keys.starts": 4 * (2**self.bits + 1),
        }
        if self.fold is not None:
            sizes["folded"] = 4 * self.fold.width * self.rows
        if self.key.type == "int64":
            return {**sizes, "keys": 8 * entries}
        return {**sizes, "keys": None, "keys.hashes": 8 * entries, "keys.places": 8 * entries}

    @property
    def entries(self) -> int:
        """How many keys the index has: one per row, and of a delta those that it removes."""
        return self.rows + self.removed

    @cached_property
    def record(self) -> np.dtype[np.void]:
        """The type of a record: one field per column."""
        return record_dtype([each.feature for each in self.columns])

    @property
    def label(self) -> str:
        """`items 3`, or `items 3.2` of its second delta, as in messages."""
        if self.base is None:
            return f"{self.kind} {self.version}"
        return f"{self.kind} {self.base.version}.{self.version}"


def side_of(kind: TableKind) -> Literal["user", "candidate"]:
    """Return the side of the features in a table."""
    return "candidate" if kind == "items" else "user"


def record_dtype(features: list[Input]) -> np.dtype[np.void]:
    """Return the type of a record with these features: one field per feature.

    Raises:
        ValueError: it would be larger than 16 MiB.
    """
    ordered: list[Input] = [each for each in features if not isinstance(each, DenseInput)]
    ordered += [each for each in features if isinstance(each, DenseInput)]
    formats: list[tuple[str, tuple[int, ...]]] = []
    offsets: list[int] = []
    end = 0
    for each in ordered:
        shape = column_shape(each, 1)[1:]
        dtype = np.dtype(column_dtype(each)).newbyteorder("<")
        formats.append((dtype.str, shape))
        offsets.append(end)
        end += dtype.itemsize * math.prod(shape)
        if end > _LARGEST_RECORD:
            raise ValueError(f"columns: a row has more than {_LARGEST_RECORD} bytes")
    return np.dtype(
        {
            "names": [each.name for each in ordered],
            "formats": formats,
            "offsets": offsets,
            "itemsize": max(8, -(-end // 8) * 8),
        }
    )


def fold_problems(columns: Collection[str], manifest: Manifest) -> list[str]:
    """Return every reason why a table of items cannot be folded for a version; none if it can.

    What is folded must not depend on the request: the table must have every candidate feature.

    Args:
        columns: the features of the table.
        manifest: of a version that the table fits.
    """
    if manifest.folded_width is None:
        return [
            f"version {manifest.version} cannot be folded: its model.json has no folded_width "
            "(training writes it for networks of this repository that have candidate features)"
        ]
    return [
        f'feature "{each.name}": is not in the table, so the table cannot be folded'
        for each in manifest.candidate_inputs
        if each.name not in columns
    ]


def incompatibilities(table: TableDescription, manifest: Manifest) -> list[str]:
    """Return every reason why a version of a model cannot use a table; none if it can.

    Each feature of the table must have the same entry in the manifest and the same vocabulary as
    when the table was made: its values are stored as the model takes them. Features that the model
    does not have are ignored. A feature that the table lacks must have a default, or be one that
    requests send.
    """
    if table.model != manifest.name:
        return [f'the table is of the model "{table.model}"']
    side = side_of(table.kind)
    inputs = {each.name: each for each in manifest.inputs if each.side == side}
    stored = {each.feature.name: each for each in table.columns}
    problems: list[str] = []
    for name, feature in inputs.items():
        if name in stored:
            problems += _differences(stored[name], feature, manifest)
        elif feature.default is None and name not in table.sent and name != table.key.name:
            problems.append(f'feature "{name}": is not in the table and has no default')
        is_filled = table.unknown == "default" and name in stored and name != table.key.name
        if is_filled and feature.default is None:
            problems.append(f'feature "{name}": has no default, which unknown = default needs')
    key = inputs.get(table.key.name)
    if key is not None and (reason := key_problem(key, table.key.type)):
        problems.append(f'key "{key.name}": {reason}')
    elif any(each.name == table.key.name for each in manifest.inputs if each.side != side):
        problems.append(f'key "{table.key.name}": is a feature of the other side')
    return problems


def key_problem(feature: Input, key_type: KeyType | None = None) -> str:
    """Return why a feature cannot be the key of a table; "" if it can."""
    if not isinstance(feature, IdInput):
        return f"is a feature of kind {feature.kind}; a key is one id"
    expected = key_type_of(feature)
    if key_type is not None and key_type != expected:
        return f"ids of the model are {expected}, keys of the table are {key_type}"
    return ""


def key_type_of(feature: IdInput) -> KeyType:
    """Return the type of the keys of a table whose key is this feature."""
    return "string" if feature.encoding.id_type is str else "int64"


def vocabulary_digest(feature: Input, manifest: Manifest) -> str | None:
    """Return the SHA-256 of a feature's vocabulary file; None if it has none."""
    if isinstance(feature, DenseInput) or not isinstance(feature.encoding, Listed):
        return None
    return manifest.files[feature.encoding.file].sha256


def _differences(stored: TableColumn, feature: Input, manifest: Manifest) -> list[str]:
    """Return how a feature of a model differs from the one that a column was made for."""
    name = feature.name
    was, now = stored.feature.model_dump(mode="json"), feature.model_dump(mode="json")
    problems = [
        f'feature "{name}": {key} is {_shown(now.get(key))}, '
        f"the table was made with {_shown(was.get(key))}"
        for key in dict.fromkeys([*now, *was])
        if was.get(key) != now.get(key)
    ]
    if isinstance(feature, IdListInput) and feature.reserves_padding and not stored.measured:
        problems.append(
            f'feature "{name}": lists of the table may contain {feature.padding}, the padding, '
            "which is no id of this version: publish the table again"
        )
    if not problems and stored.vocabulary != vocabulary_digest(feature, manifest):
        problems.append(f'feature "{name}": the table was made with another vocabulary')
    return problems


def _shown(value: object) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def default_record(features: list[Input], columns: Mapping[str, Column]) -> npt.NDArray[np.void]:
    """Return the row of the defaults, `[1]`: zeros for a feature without a default.

    Args:
        features: of the table.
        columns: the encoded defaults, one row each, of the features that have one.
    """
    record = np.zeros(1, record_dtype(features))
    for name, column in columns.items():
        record[name] = column
    return record
