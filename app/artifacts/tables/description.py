"""`table.json`: what a table holds.

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
from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from app.artifacts.columns import column_dtype, column_shape
from app.artifacts.encoding import Listed
from app.artifacts.inputs import DenseInput, FeatureName, IdListInput, Input
from app.artifacts.manifest import MOST_FOLDED, Manifest, Name, first_problem
from app.artifacts.store import LARGEST_VERSION
from app.artifacts.value import Value
from app.errors import ArtifactInvalid, TableIncomplete
from app.files import read_small_file

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
LARGEST_DESCRIPTION = 16 * 2**20  # bytes

TableKind = Literal["items", "users"]
TABLE_KINDS: Final[tuple[TableKind, ...]] = ("items", "users")
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
    """The feature, or other name, by which requests name a row; an input of V2 has it, too."""

    name: FeatureName
    type: KeyType


class Fold(Value):
    """The program that a table is folded for: see the file `folded`.

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
    sent: tuple[FeatureName, ...] = ()
    unknown: UnknownPolicy = "error"
    max_age_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    fold: Fold | None = None
    created: datetime
    source: str = Field(default="", max_length=1024)
    files: dict[FileName, Pieces]

    @model_validator(mode="after")
    def _columns_are_distinct_and_of_one_side(self) -> Self:
        side = side_of(self.kind)
        features = [column.feature for column in self.columns]
        names = [feature.name for feature in features]
        if len(set(names)) < len(names):
            raise ValueError("two columns have the same name")
        if wrong := [feature.name for feature in features if feature.side != side]:
            raise ValueError(f'column "{wrong[0]}" is not a {side} feature')
        for column, feature in zip(self.columns, features, strict=True):
            is_listed = not isinstance(feature, DenseInput) and isinstance(feature.encoding, Listed)
            if is_listed != (column.vocabulary is not None):
                raise ValueError(f'column "{feature.name}": digest of the vocabulary')
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
    def size(self) -> int:
        """How many bytes the files have, without `table.json`."""
        return sum(file.size for file in self.files.values())

    @property
    def entries(self) -> int:
        """How many keys the index has: one per row, and of a delta those that it removes."""
        return self.rows + self.removed

    def keeps(self, fold: Fold) -> bool:
        """Whether a table with this fold is folded with this delta, too; without rows it is."""
        return self.rows == 0 or self.fold == fold

    @cached_property
    def record(self) -> np.dtype[np.void]:
        """The type of a record: one field per column."""
        return record_dtype([column.feature for column in self.columns])

    @property
    def label(self) -> str:
        """`items/3`, or `items/3.2` of its second delta, as in messages."""
        if self.base is None:
            return f"{self.kind}/{self.version}"
        return f"{self.kind}/{self.base.version}.{self.version}"


def read_description(folder: Path) -> TableDescription:
    """Read and validate `table.json`.

    Raises:
        TableIncomplete: it is missing, or ends early.
        ArtifactInvalid: names the key and the rule that it breaks.
        OSError: it cannot be read now.
    """
    try:
        content = read_small_file(folder / TABLE, max_bytes=LARGEST_DESCRIPTION)
    except (FileNotFoundError, NotADirectoryError):
        raise TableIncomplete(f"{TABLE}: is missing") from None
    try:
        return TableDescription.model_validate_json(content)
    except ValidationError as error:
        problem = f"{TABLE}: {first_problem(error, content, TableDescription)}"
        if error.errors()[0]["type"] == "json_invalid":
            raise TableIncomplete(problem) from error
        raise ArtifactInvalid(problem) from error


def side_of(kind: TableKind) -> Literal["user", "candidate"]:
    """Return the side of the features in a table."""
    return "candidate" if kind == "items" else "user"


def record_dtype(features: list[Input]) -> np.dtype[np.void]:
    """Return the type of a record with these features: one field per feature.

    Raises:
        ValueError: it would be larger than 16 MiB.
    """
    ordered = sorted(features, key=lambda feature: isinstance(feature, DenseInput))  # ids first
    formats: list[tuple[str, tuple[int, ...]]] = []
    offsets: list[int] = []
    end = 0
    for feature in ordered:
        shape = column_shape(feature, 1)[1:]
        dtype = np.dtype(column_dtype(feature)).newbyteorder("<")
        formats.append((dtype.str, shape))
        offsets.append(end)
        end += dtype.itemsize * math.prod(shape)
        if end > _LARGEST_RECORD:
            raise ValueError(f"columns: a row has more than {_LARGEST_RECORD} bytes")
    return np.dtype(
        {
            "names": [feature.name for feature in ordered],
            "formats": formats,
            "offsets": offsets,
            "itemsize": max(8, -(-end // 8) * 8),
        }
    )
