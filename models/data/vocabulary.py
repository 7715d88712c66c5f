"""Vocabularies of a table's ids: made of the training set once, then read by every run.

They are files of their own, so that a later training keeps the rows that ids have.
"""

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
    HashedIds,
    IdColumn,
    IdentityIds,
    IdListColumn,
    ListedIds,
)


def encoding_of(ids: HashedIds | ListedIds, owner: str) -> Hashed | Listed:
    """The encoding that a manifest states, of the ids of the feature `owner`."""
    if isinstance(ids, HashedIds):
        return Hashed(ids=ids.ids, buckets=ids.buckets, seed=ids.seed)
    return Listed(ids=ids.ids, file=f"vocabulary.{owner}.jsonl")


def encodings(config: FilesConfig) -> dict[str, Identity | Hashed | Listed]:
    """The encoding of every id and id-list feature, as a manifest states it."""
    found: dict[str, Identity | Hashed | Listed] = {}
    for feature in config.features:
        if not isinstance(feature, DenseColumns):
            ids = config.ids(feature)
            if isinstance(ids, IdentityIds):
                found[feature.name] = Identity()
            else:
                found[feature.name] = encoding_of(ids, feature.shared_with or feature.name)
    return found


def vocabulary_files(config: FilesConfig) -> dict[str, bytes]:
    """The files that travel in the artifact, by the names that `encodings` gives them."""
    files = {}
    for feature in config.features:
        if not isinstance(feature, DenseColumns) and isinstance(feature.encoding, ListedIds):
            files[f"vocabulary.{feature.name}.jsonl"] = _content(config, feature.encoding)
    return files


def vocabulary_size(config: FilesConfig, feature: IdColumn | IdListColumn) -> int:
    """How many rows a feature's embedding table has, the unknown included."""
    ids = config.ids(feature)
    if isinstance(ids, IdentityIds):
        return ids.vocabulary_size
    if isinstance(ids, HashedIds):
        return ids.buckets + 1
    return len(read_vocabulary_of(config, feature)) + 1


def read_vocabulary_of(config: FilesConfig, feature: IdColumn | IdListColumn) -> Vocabulary:
    """The ids that a feature knows; empty where its encoding has no vocabulary.

    Raises:
        DataInvalid: the file is missing or wrong.
    """
    ids = config.ids(feature)
    if not isinstance(ids, ListedIds):
        return NO_VOCABULARY
    path = config.path(ids.file)
    try:
        return _read(path, path.stat().st_mtime_ns, ids.ids)
    except FileNotFoundError:
        raise DataInvalid(
            f"{path}: there is no such vocabulary; `python -m models vocabulary` makes it"
        ) from None
    except ValueError as error:
        raise DataInvalid(f"{path}: {error}") from error


@lru_cache(maxsize=64)
def _read(path: Path, changed_ns: int, ids: str) -> Vocabulary:
    del changed_ns  # a file that was changed is read again
    return read_vocabulary(path.read_bytes(), str if ids == "string" else int)


def _content(config: FilesConfig, ids: ListedIds) -> bytes:
    return config.path(ids.file).read_bytes()
