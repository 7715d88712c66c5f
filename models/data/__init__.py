"""Training data: from a configuration to features and labelled impressions."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from app.artifacts.encoding import Hashed, Identity, Listed
from models.data import feed, synthetic, table_inputs
from models.data.dataset import PADDING, ROW_WEIGHT, UNKNOWN, Dataset, Splits, TrainingSet
from models.data.feed import FeedConfig
from models.data.schema import DataInvalid, FilesConfig
from models.data.synthetic import SyntheticConfig
from models.data.table_inputs import VocabularySize
from models.networks.config import Feature, Pooling, Task, TaskKind

__all__ = [
    "DATASETS",
    "PADDING",
    "ROW_WEIGHT",
    "SOURCES",
    "UNKNOWN",
    "DataConfig",
    "DataInvalid",
    "Dataset",
    "FeedConfig",
    "FilesConfig",
    "Splits",
    "SyntheticConfig",
    "TrainingSet",
    "draft_schema",
    "encodings",
    "features",
    "fetch",
    "generate",
    "label_kinds",
    "make_vocabularies",
    "vocabulary_files",
    "write_tables",
]

SOURCES = ("feed", "synthetic", "files")
DatasetName = Literal["census-income", "movielens-100k"]
DATASETS: tuple[DatasetName, ...] = ("census-income", "movielens-100k")
AnyConfig = FeedConfig | SyntheticConfig | FilesConfig
DataConfig = Annotated[AnyConfig, Field(discriminator="source")]


def features(config: AnyConfig, *, embedding_dim: int, pooling: Pooling) -> tuple[Feature, ...]:
    """The features of the data that `config` describes, user features first.

    Raises:
        DataInvalid: a vocabulary, which gives the number of ids, is missing or invalid.
    """
    match config:
        case FeedConfig():
            return feed.features(config, embedding_dim, pooling)
        case SyntheticConfig():
            return synthetic.features(config)
        case FilesConfig():
            return table_inputs.features(config, embedding_dim, pooling)


def label_kinds(config: AnyConfig) -> dict[str, TaskKind]:
    """The labels of the data and their kinds."""
    if isinstance(config, FilesConfig):
        return {label.name: label.kind for label in config.labels}
    return dict(config.LABELS)


def encodings(config: AnyConfig) -> Mapping[str, Identity | Hashed | Listed]:
    """How the ids of each feature become embedding rows; empty for simulated data."""
    return table_inputs.encodings(config) if isinstance(config, FilesConfig) else {}


def vocabulary_files(config: AnyConfig) -> Mapping[str, bytes]:
    """The files that `encodings` names, with their content."""
    return table_inputs.vocabulary_files(config) if isinstance(config, FilesConfig) else {}


def generate(config: AnyConfig, tasks: Sequence[Task] = ()) -> Splits:
    """Simulate or read the data that `config` describes.

    Args:
        config: the source.
        tasks: their labels are checked in files.

    Raises:
        DataInvalid: files do not match their schema, or a label has only one value.
    """
    match config:
        case FeedConfig():
            return feed.generate(config)
        case SyntheticConfig():
            return synthetic.generate(config)
        case FilesConfig():
            _need_pyarrow()
            from models.data import scan

            return scan.generate(config, tasks)


def make_vocabularies(config: AnyConfig) -> Mapping[Path, VocabularySize]:
    """Write the vocabulary files that `config` names and that do not exist.

    Returns:
        The size of each new file.

    Raises:
        DataInvalid: files do not match their schema, or contain no ids.
    """
    if not isinstance(config, FilesConfig):
        return {}
    _need_pyarrow()
    from models.data import vocabularies

    return vocabularies.make(config)


def draft_schema(path: Path) -> str:
    """Draft the schema of a table from its first rows, in TOML.

    Raises:
        DataInvalid: the file is not a table, or it has no rows.
    """
    _need_pyarrow()
    from models.data import draft

    return draft.draft(path)


def write_tables(
    config: AnyConfig, folder: Path, keys: Mapping[str, str | None]
) -> Mapping[Path, int]:
    """Write the items and the users of the data as files; return the number of rows of each.

    Args:
        config: the source.
        folder: of the files; created if absent.
        keys: of `items` and `users`: the id feature that identifies a row, None for the usual one.

    Raises:
        DataInvalid: the data has no items and users, or a key is no id feature.
    """
    match config:
        case FeedConfig():
            return feed.write_tables(config, folder)
        case SyntheticConfig():
            raise DataInvalid("synthetic data has no items and users")
    _need_pyarrow()
    from models.data import entities

    return entities.write(config, folder, keys)


def fetch(dataset: DatasetName, folder: Path, source: Path | None = None) -> dict[str, int]:
    """Write the tables of a public data set, their schema and vocabularies to `folder`.

    Args:
        dataset: one of `DATASETS`.
        folder: created if absent.
        source: a folder or an archive with the raw files; downloaded if `None`.

    Returns:
        The number of rows of each table.

    Raises:
        DataInvalid: the source does not contain the raw files.
        OSError: the download failed, or the folder cannot be written.
    """
    _need_pyarrow()
    from models.data import census_income, movielens

    fetched = {"census-income": census_income.fetch, "movielens-100k": movielens.fetch}
    rows = fetched[dataset](folder, source)
    schema = tomllib.loads((folder / "schema.toml").read_text(encoding="utf-8-sig"))
    make_vocabularies(FilesConfig.model_validate({"folder": str(folder)} | schema))
    return rows


def _need_pyarrow() -> None:
    """Check that pyarrow, an extra that only files need, is installed."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise DataInvalid(
            "reading Parquet and CSV needs pyarrow: pip install -e '.[data]'"
        ) from None
