"""Where training data comes from: a configuration in, features and labelled impressions out."""

from typing import Annotated

from pydantic import Field

from models.config import Feature, Pooling
from models.data import feed, synthetic
from models.data.dataset import PADDING, UNKNOWN, Dataset, Splits
from models.data.simulation import FeedConfig
from models.data.synthetic import SyntheticConfig

__all__ = [
    "PADDING",
    "SOURCES",
    "UNKNOWN",
    "DataConfig",
    "Dataset",
    "FeedConfig",
    "Splits",
    "SyntheticConfig",
    "features",
    "generate",
]

SOURCES = ("feed", "synthetic")
DataConfig = Annotated[FeedConfig | SyntheticConfig, Field(discriminator="source")]


def features(
    config: FeedConfig | SyntheticConfig, *, embedding_dim: int, pooling: Pooling
) -> tuple[Feature, ...]:
    """The features of the data that `config` describes, user's side first."""
    if isinstance(config, FeedConfig):
        return feed.features(config, embedding_dim, pooling)
    return synthetic.features(config)


def generate(config: FeedConfig | SyntheticConfig) -> Splits:
    """Make the data that `config` describes."""
    return feed.generate(config) if isinstance(config, FeedConfig) else synthetic.generate(config)
