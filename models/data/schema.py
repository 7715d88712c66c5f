"""The schema of a table in Parquet or CSV files: features, labels, requests and splits.

```toml
files = ["impressions-*.parquet"]  # relative to this file; Parquet, or CSV with a header
group = "request_id"               # rows with the same value are one request, in one split;
                                   # default: every row is a request
user = "user_id"                   # the user of a request, for the AUC per user; default: group

[split]                            # by = "hash" of the group, "column", or "file"
by = "hash"
validation = 0.1
test = 0.1

[[features]]
name = "item_id"                   # also the name of the column, unless `column` is given
kind = "id"                        # id | id_list | dense
side = "candidate"                 # user | candidate
encoding = { kind = "vocabulary", file = "items.jsonl" }  # or hash, or identity

[[features]]
name = "recent_items"
kind = "id_list"
side = "user"
max_length = 20                    # longer lists keep their first ids
shared_with = "item_id"            # the same ids, the same embeddings

[[features]]
name = "quality"
kind = "dense"
side = "candidate"
columns = ["freshness", "length"]  # one number per column; or `dim` numbers in a list column
scaling = "auto"                   # in the network: auto | standard | log | none
missing = "fill"                   # an empty value becomes the median; or "refuse" the row

[[labels]]
name = "click"
kind = "binary"                    # binary | duration | regression
positive = ["yes"]                 # the values of a binary label that mean 1; default: numbers
```

Files are Parquet, or text that ends in .csv, .tsv, .txt or .data, compressed if followed by .gz.
The `delimiter` of text is the one of , tab ; | that occurs most in the first line; a file without a
header line needs `header = ["name", …]`.

A label that is empty, null or NaN, or whose `mask` column is false, is undefined on that row: it is
in no loss and no metric. A binary label is 1 or 0, true or false, yes or no, or 1 or -1. A missing
number is empty, NA, NaN, null, none or ?. In text, a list is one field with a `separator`, by
default a space, or a JSON list. Rows are read by :mod:`models.data.files`.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from app.artifacts.manifest import Name
from models.networks.config import Record, Scaling, Side, TaskKind, check_unique

IdType = Literal["string", "int64"]
Share = Annotated[float, Field(gt=0, lt=1)]


DATES = "dates are no features: make hour, weekday or days since of them first (models/README.md)"


class DataInvalid(ValueError):
    """Data cannot be used. The message is one line with file or column, and the rule."""


class IdentityIds(Record):
    """Integers below `vocabulary_size` that are embedding rows already; 0 is the unknown id."""

    kind: Literal["identity"]
    vocabulary_size: PositiveInt


class HashIds(Record):
    """Ids that are hashed to `buckets` rows (:mod:`app.artifacts.encoding`)."""

    kind: Literal["hash"]
    ids: IdType = "string"
    buckets: int = Field(ge=1, lt=2**31)
    seed: int = Field(default=0, ge=0, lt=2**63)


class VocabularyIds(Record):
    """Ids listed in `file`, one JSON value per line; every other id is unknown.

    `python -m models vocabulary` writes the file with the ids that occur at least `min_count` times
    in the training set. The default leaves out ids that occur once, so that the embedding of the
    unknown id is trained with them.
    """

    kind: Literal["vocabulary"]
    ids: IdType = "string"
    file: str = Field(min_length=1)
    min_count: PositiveInt = 2


Ids = Annotated[IdentityIds | HashIds | VocabularyIds, Field(discriminator="kind")]


class DenseColumns(Record):
    """Numbers: one from each of `columns`, or `dim` from one list column.

    `scaling`, `clip`, `missing` and `missing_indicator` become part of the network
    (:class:`models.networks.config.DenseFeature`), so that requests contain raw values too.
    """

    kind: Literal["dense"]
    name: Name
    side: Side
    columns: tuple[str, ...] = Field(default_factory=lambda data: (data["name"],), min_length=1)
    dim: PositiveInt = Field(default_factory=lambda data: len(data.get("columns", "1")))
    separator: str = Field(default=" ", min_length=1)
    scaling: Scaling = "auto"
    clip: tuple[float, float] | None = None
    missing: Literal["fill", "refuse"] = "fill"
    missing_indicator: bool = False

    @model_validator(mode="after")
    def _dim_fits(self) -> "DenseColumns":
        if len(self.columns) > 1 and self.dim != len(self.columns):
            raise ValueError(f"dim: is {self.dim}, but there are {len(self.columns)} columns")
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ValueError("clip: must be [low, high] with low < high")
        if self.missing_indicator and self.missing == "refuse":
            raise ValueError('missing_indicator: needs missing = "fill"')
        return self


class _IdColumn(Record):
    name: Name
    side: Side
    column: str = Field(default_factory=lambda data: data.get("name", ""))
    encoding: Ids | None = None
    shared_with: str | None = None

    @model_validator(mode="after")
    def _has_one_encoding(self) -> "_IdColumn":
        if (self.encoding is None) == (self.shared_with is None):
            raise ValueError(f"{self.name}: needs either encoding or shared_with")
        return self


class IdColumn(_IdColumn):
    """One id; null is unknown."""

    kind: Literal["id"]


class IdListColumn(_IdColumn):
    """A list of ids; the first `max_length` are used."""

    kind: Literal["id_list"]
    max_length: PositiveInt
    separator: str = Field(default=" ", min_length=1)


TableFeature = Annotated[DenseColumns | IdColumn | IdListColumn, Field(discriminator="kind")]


class Label(Record):
    """A label: 0 or 1, seconds, or a number; undefined where the `mask` column is false.

    `positive` lists the values of the column that mean 1; every other value means 0.
    """

    name: Name
    kind: TaskKind
    column: str = Field(default_factory=lambda data: data.get("name", ""))
    mask: str | None = None
    positive: tuple[str | int, ...] = ()

    @model_validator(mode="after")
    def _only_binary_labels_have_positive_values(self) -> "Label":
        if self.positive and self.kind != "binary":
            raise ValueError(f"{self.name}: positive: only binary labels have it")
        return self


class SplitByHash(Record):
    """Random shares of the requests, drawn by a hash of their group with `seed`."""

    by: Literal["hash"] = "hash"
    validation: Share = 0.1
    test: Share = 0.1
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _something_is_left(self) -> "SplitByHash":
        if self.validation + self.test >= 1:
            raise ValueError("validation + test: must be below 1, so that training rows are left")
        return self


class SplitByColumn(Record):
    """Rows by the value of `column`; every other row is for training."""

    by: Literal["column"]
    column: str
    validation: tuple[str | int, ...] = Field(min_length=1)
    test: tuple[str | int, ...] = Field(min_length=1)


class SplitByFile(Record):
    """Files, or patterns of files, for each split."""

    by: Literal["file"]
    train: tuple[str, ...] = Field(min_length=1)
    validation: tuple[str, ...] = Field(min_length=1)
    test: tuple[str, ...] = Field(min_length=1)


Split = Annotated[SplitByHash | SplitByColumn | SplitByFile, Field(discriminator="by")]


class FilesConfig(Record):
    """A table in files, and how to read it.

    `files` and vocabularies are in `folder`. Training holds `shuffle_rows` rows in memory at a time
    and shuffles within them, so a training set of up to that size is read only once; the validation
    and the test set are held in memory. Numbers in text have a `decimal` point or comma. Up to
    `max_bad_rows` invalid rows are skipped. `weight` is a column with the weight of each row in the
    training loss.
    """

    source: Literal["files"] = "files"
    folder: str = "."
    files: tuple[str, ...] = ()
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    decimal: Literal[".", ","] = "."
    header: tuple[str, ...] = ()
    group: str | None = None
    user: str | None = Field(default_factory=lambda data: data.get("group"))
    weight: str | None = None
    split: Split = SplitByHash()
    features: tuple[TableFeature, ...] = Field(min_length=1)
    labels: tuple[Label, ...] = Field(min_length=1)
    max_bad_rows: int = Field(default=0, ge=0)
    shuffle_rows: PositiveInt = 200_000

    @model_validator(mode="after")
    def _parts_fit_together(self) -> "FilesConfig":
        check_unique("features", (feature.name for feature in self.features))
        check_unique("labels", (label.name for label in self.labels))
        if isinstance(self.split, SplitByFile) == bool(self.files):
            raise ValueError("files: required, unless the split is by file")
        owners = {
            feature.name: feature
            for feature in self.features
            if not isinstance(feature, DenseColumns)
        }
        for feature in owners.values():
            owner = owners.get(feature.shared_with or feature.name)
            if owner is None or owner.encoding is None:
                raise ValueError(
                    f"features.{feature.name}.shared_with: {feature.shared_with!r} is not an id "
                    "feature with an encoding"
                )
        return self

    def ids(self, feature: IdColumn | IdListColumn) -> IdentityIds | HashIds | VocabularyIds:
        """The encoding of a feature, or of the feature that it shares."""
        if feature.encoding is not None:
            return feature.encoding
        (owner,) = (other for other in self.features if other.name == feature.shared_with)
        assert not isinstance(owner, DenseColumns)
        assert owner.encoding is not None
        return owner.encoding

    def path(self, name: str) -> Path:
        """The path of a file that the schema names."""
        return Path(self.folder) / name
