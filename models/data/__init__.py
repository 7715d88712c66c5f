"""Where training data comes from: a configuration in, features and labelled impressions out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from app.artifacts.encoding import Hashed, Identity, Listed
from models.data import feed, synthetic, table_inputs
from models.data.dataset import PADDING, UNKNOWN, Dataset, Splits, TrainingSet
from models.data.feed import FeedConfig
from models.data.schema import DataInvalid, FilesConfig
from models.data.synthetic import SyntheticConfig
from models.networks.config import Feature, Pooling, Task, TaskKind

__all__ = [
    "PADDING",
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
    "encodings",
    "features",
    "generate",
    "label_kinds",
    "make_vocabularies",
    "vocabulary_files",
]

SOURCES = ("feed", "synthetic", "files")
AnyConfig = FeedConfig | SyntheticConfig | FilesConfig
DataConfig = Annotated[AnyConfig, Field(discriminator="source")]


def features(config: AnyConfig, *, embedding_dim: int, pooling: Pooling) -> tuple[Feature, ...]:
    """The features of the data that `config` describes, user's side first.

    Raises:
        DataInvalid: a vocabulary, which says how many ids there are, is missing or wrong.
    """
    match config:
        case FeedConfig():
            return feed.features(config, embedding_dim, pooling)
        case SyntheticConfig():
            return synthetic.features(config)
        case FilesConfig():
            return table_inputs.features(config, embedding_dim, pooling)


def label_kinds(config: AnyConfig) -> dict[str, TaskKind]:
    """The labels that the data has, and of which kind they are."""
    if isinstance(config, FilesConfig):
        return {label.name: label.kind for label in config.labels}
    return dict(config.LABELS)


def encodings(config: AnyConfig) -> Mapping[str, Identity | Hashed | Listed]:
    """How the ids of each feature become rows, where the data does not have rows as it is."""
    return table_inputs.encodings(config) if isinstance(config, FilesConfig) else {}


def vocabulary_files(config: AnyConfig) -> Mapping[str, bytes]:
    """The files that `encodings` names, and what they hold."""
    return table_inputs.vocabulary_files(config) if isinstance(config, FilesConfig) else {}


def generate(config: AnyConfig, tasks: Sequence[Task] = ()) -> Splits:
    """Make or read the data that `config` describes.

    Args:
        config: the source.
        tasks: what the data is for; of files it is checked that these can be learnt.

    Raises:
        DataInvalid: files do not fit their schema, or nothing could be learnt from them.
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


def make_vocabularies(config: AnyConfig) -> dict[Path, int]:
    """Make the vocabulary files that `config` names and that are not there; ids in each.

    Raises:
        DataInvalid: files do not fit their schema, or hold no ids.
    """
    if not isinstance(config, FilesConfig):
        return {}
    _need_pyarrow()
    from models.data import vocabularies

    return vocabularies.make(config)


def _need_pyarrow() -> None:
    """The reader of files is an extra: nothing else needs it."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise DataInvalid(
            "Parquet and CSV files are read with pyarrow: pip install 'gatehouse[data]'"
        ) from None
