"""The feed as training data: features of both sides, labels, and what was to be expected.

How the feed comes about is told in :mod:`models.data.simulation`.
"""

from collections.abc import Sequence

import numpy as np
import torch

from models.data.dataset import Dataset, SplitsInMemory
from models.data.simulation import FeedConfig, Floats, Round, World, simulate
from models.networks.config import DenseFeature, Feature, IdFeature, IdListFeature, Pooling, Side


def features(config: FeedConfig, embedding_dim: int, pooling: Pooling) -> tuple[Feature, ...]:
    """The feed's features; the history uses the items' embedding table."""
    items = config.items + 1  # and the unknown

    def an_id(name: str, side: Side, vocabulary_size: int) -> IdFeature:
        return IdFeature(
            name=name, side=side, vocabulary_size=vocabulary_size, embedding_dim=embedding_dim
        )

    return (
        an_id("user_id", "user", config.users + 1),
        an_id("age_bucket", "user", config.age_buckets + 1),
        IdListFeature(
            name="recent_items",
            side="user",
            vocabulary_size=items,
            embedding_dim=embedding_dim,
            pooling=pooling,
            max_length=config.history,
            shared_with="item_id",
        ),
        DenseFeature(name="activity", side="user", dim=4),
        an_id("item_id", "candidate", items),
        an_id("category", "candidate", config.categories + 1),
        DenseFeature(name="quality", side="candidate", dim=2),
    )


def generate(config: FeedConfig) -> SplitsInMemory:
    """Simulate a feed: its last round is the test set, the one before it the validation set.

    `expected` holds P(click), P(like | click) and E[dwell]; `like` is NaN where not clicked, and
    `dwell` 0. The same configuration gives the same data.
    """
    world, rounds = simulate(config)
    return SplitsInMemory(
        train=_dataset(world, rounds[:-2]),
        validation=_dataset(world, rounds[-2:-1]),
        test=_dataset(world, rounds[-1:]),
    )


def _dataset(world: World, rounds: Sequence[Round]) -> Dataset:
    users = np.concatenate([each.users for each in rounds])  # [R]
    items = np.concatenate([each.items for each in rounds])  # [R, n]
    rows = items.reshape(-1)  # [R, n] → [B]

    def floats(arrays: list[Floats]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(arrays).reshape(-1).astype(np.float32))  # [B]

    return Dataset(
        user={
            "user_id": torch.from_numpy(world.user_id[users]),
            "age_bucket": torch.from_numpy(world.age_bucket[users]),
            "recent_items": torch.from_numpy(np.concatenate([r.recent_items for r in rounds])),
            "activity": torch.from_numpy(np.concatenate([r.activity for r in rounds])).float(),
        },
        candidate={
            "item_id": torch.from_numpy(world.item_id[rows]),
            "category": torch.from_numpy(world.category[rows]),
            "quality": torch.from_numpy(world.quality[rows]).float(),
        },
        row_to_request=torch.arange(len(users)).repeat_interleave(items.shape[1]),  # [B]
        labels={
            "click": floats([each.seen.click for each in rounds]),
            "like": floats([each.seen.like for each in rounds]),
            "dwell": floats([each.seen.dwell for each in rounds]),
        },
        expected={
            "click": floats([each.seen.p_click for each in rounds]),
            "like": floats([each.seen.p_like for each in rounds]),
            "dwell": floats([each.seen.mean_dwell for each in rounds]),
        },
        users=torch.from_numpy(users),
    )
