"""A table's schema as a network's features, id encodings and vocabularies.

A vocabulary is a file of its own, made from the training set once (`python -m models vocabulary`)
and read by every run, so that a later training keeps the embedding row of every id.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from app.artifacts.encoding import (
    NO_VOCABULARY,
    Hashed,
    Identity,
    Listed,
    Vocabulary,
    read_vocabulary,
)
from models.data.schema import (
    DataInvalid,
    DenseColumns,
    FilesConfig,
    HashIds,
    IdColumn,
    IdentityIds,
    IdListColumn,
    TableFeature,
    VocabularyIds,
)
from models.networks.config import DenseFeature, Feature, IdFeature, IdListFeature, Pooling


@dataclass(frozen=True, slots=True)
class VocabularySize:
    """The number of ids in a vocabulary, and of the training ids that are too rare for it."""

    ids: int
    rare: int

    def __str__(self) -> str:
        if self.rare:
            return f"{self.ids:,} ids; {self.rare:,} rarer ids train the embedding of unknown ids"
        return (
            f"{self.ids:,} ids; no training id is unknown, so the scores of new ids are arbitrary"
        )


def features(config: FilesConfig, embedding_dim: int, pooling: Pooling) -> tuple[Feature, ...]:
    """The features of the table, user features first, each side in the order of the schema.

    Raises:
        DataInvalid: a vocabulary is missing or invalid.
    """
    user_first = sorted(config.features, key=lambda feature: feature.side != "user")
    return tuple(_feature(config, feature, embedding_dim, pooling) for feature in user_first)


def _feature(
    config: FilesConfig, feature: TableFeature, embedding_dim: int, pooling: Pooling
) -> Feature:
    if isinstance(feature, DenseColumns):
        return DenseFeature(
            name=feature.name,
            side=feature.side,
            dim=feature.dim,
            scaling=feature.scaling,
            clip=feature.clip,
            fills_missing=feature.missing == "fill",
            missing_indicator=feature.missing_indicator,
        )
    size = vocabulary_size(config, feature)
    if isinstance(feature, IdColumn):
        return IdFeature(
            name=feature.name,
            side=feature.side,
            vocabulary_size=size,
            embedding_dim=embedding_dim,
            shared_with=feature.shared_with,
        )
    return IdListFeature(
        name=feature.name,
        side=feature.side,
        vocabulary_size=size,
        embedding_dim=embedding_dim,
        pooling=pooling,
        max_length=feature.max_length,
        shared_with=feature.shared_with,
    )


def encoding_of(ids: HashIds | VocabularyIds, owner: str) -> Hashed | Listed:
    """The encoding in the manifest for the ids of the feature `owner`."""
    if isinstance(ids, HashIds):
        return Hashed(ids=ids.ids, buckets=ids.buckets, seed=ids.seed)
    return Listed(ids=ids.ids, file=f"vocabulary.{owner}.jsonl")


def encodings(config: FilesConfig) -> dict[str, Identity | Hashed | Listed]:
    """The encoding of every id and id-list feature in the manifest."""
    encodings: dict[str, Identity | Hashed | Listed] = {}
    for feature in config.features:
        if not isinstance(feature, DenseColumns):
            ids = config.ids(feature)
            if isinstance(ids, IdentityIds):
                encodings[feature.name] = Identity()
            else:
                encodings[feature.name] = encoding_of(ids, feature.shared_with or feature.name)
    return encodings


def vocabulary_files(config: FilesConfig) -> dict[str, bytes]:
    """The content of the vocabulary files in the artifact, by their names in `encodings`."""
    files = {}
    for feature in config.features:
        if not isinstance(feature, DenseColumns) and isinstance(feature.encoding, VocabularyIds):
            files[f"vocabulary.{feature.name}.jsonl"] = _content(config, feature.encoding)
    return files


def vocabulary_size(config: FilesConfig, feature: IdColumn | IdListColumn) -> int:
    """Number of rows of a feature's embedding table, including the unknown id."""
    ids = config.ids(feature)
    if isinstance(ids, IdentityIds):
        return ids.vocabulary_size
    if isinstance(ids, HashIds):
        return ids.buckets + 1
    return len(read_vocabulary_of(config, feature)) + 1


def read_vocabulary_of(config: FilesConfig, feature: IdColumn | IdListColumn) -> Vocabulary:
    """The vocabulary of a feature; empty if its encoding has none.

    Raises:
        DataInvalid: the file is missing or invalid.
    """
    ids = config.ids(feature)
    if not isinstance(ids, VocabularyIds):
        return NO_VOCABULARY
    path = config.path(ids.file)
    try:
        return _read(path, path.stat().st_mtime_ns, ids.ids)
    except FileNotFoundError:
        raise DataInvalid(
            f"{path}: vocabulary does not exist; create it with `python -m models vocabulary`"
        ) from None
    except ValueError as error:
        raise DataInvalid(f"{path}: {error}") from error


@lru_cache(maxsize=64)
def _read(path: Path, changed_ns: int, ids: str) -> Vocabulary:
    del changed_ns  # a changed file is read again
    return read_vocabulary(path.read_bytes(), str if ids == "string" else int)


def _content(config: FilesConfig, ids: VocabularyIds) -> bytes:
    return config.path(ids.file).read_bytes()
