"""The features of a table, as a network takes them."""

from models.data.schema import DenseColumns, FilesConfig, IdColumn, TableFeature
from models.data.vocabulary import vocabulary_size
from models.networks.config import DenseFeature, Feature, IdFeature, IdListFeature, Pooling


def features(config: FilesConfig, embedding_dim: int, pooling: Pooling) -> tuple[Feature, ...]:
    """The table's features, the user's first, each side as the schema lists it.

    Raises:
        DataInvalid: a vocabulary is missing or wrong.
    """
    user_first = sorted(config.features, key=lambda feature: feature.side != "user")
    return tuple(_feature(config, feature, embedding_dim, pooling) for feature in user_first)


def _feature(
    config: FilesConfig, feature: TableFeature, embedding_dim: int, pooling: Pooling
) -> Feature:
    if isinstance(feature, DenseColumns):
        return DenseFeature(name=feature.name, side=feature.side, dim=feature.dim)
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
