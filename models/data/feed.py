"""A simulated feed: users with tastes see items, click, like and stay.

Every user and every item has a vector of latent tastes. Users of one age bucket are alike, and so
are items of one category. An item also has an *appeal*, which makes people click, and a
*substance*, which makes them like it and stay; an item of much appeal and little substance is
*bait*. For user u and item i, with the match m = ⟨taste of u, vector of i⟩ / √d:

    P(click)         = σ(-1.9 + 1.3 m + 0.9 appeal + 0.6 eagerness of u)
    P(like | click)  = σ(-1.0 + 0.9 m + 1.1 substance - 0.5 appeal)
    E[dwell | click] = exp(log 20 + 0.4 m + 0.5 substance - 0.3 appeal)  seconds

Dwell is log-normal around that mean and 0 without a click; `like` is NaN without a click. The
tasks share the match, and have opposite dependencies on appeal.

Time runs in rounds. In each round, some users make one request; their clicks are added to their
history and activity afterwards, so that features contain only earlier events. Some users are not
logged in and some items are new: their id is *unknown*, so that a network learns that row too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import orjson
import torch
from pydantic import Field, PositiveInt

from models.data.dataset import PADDING, UNKNOWN, Dataset, SplitsInMemory
from models.networks.config import (
    DenseFeature,
    Feature,
    IdFeature,
    IdListFeature,
    Pooling,
    Record,
    Side,
    TaskKind,
)

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_JSON_LINES = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
LATENT_DIM = 3
DWELL_SIGMA = 0.8
"""The standard deviation of log dwell: one visit in thirty lasts more than three times its mean."""


class FeedConfig(Record):
    """Size of a feed; it has about users · visit_rate · rounds · candidates rows."""

    LABELS: ClassVar[dict[str, TaskKind]] = {
        "click": "binary",
        "like": "binary",
        "dwell": "duration",
    }

    source: Literal["feed"] = "feed"
    users: PositiveInt = 2000
    items: PositiveInt = 2000
    categories: PositiveInt = 24
    age_buckets: PositiveInt = 7
    rounds: int = Field(default=14, ge=3)
    candidates: PositiveInt = 20
    history: PositiveInt = 20
    visit_rate: float = Field(default=0.7, gt=0, le=1)
    unknown_share: float = Field(default=0.03, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True, slots=True)
class World:
    """Everything constant: `U` users and `I` items, with latent and visible attributes."""

    user_id: Integers  # [U] 0 if not logged in
    age_bucket: Integers  # [U]
    taste: Floats  # [U, d]
    eagerness: Floats  # [U]
    item_id: Integers  # [I] 0 if new
    category: Integers  # [I]
    vector: Floats  # [I, d]
    appeal: Floats  # [I]
    substance: Floats  # [I]
    quality: Floats  # [I, 2] appeal and substance with noise, as from a content model
    popularity: Floats  # [I] sums to 1

    @classmethod
    def draw(cls, config: FeedConfig, random: np.random.Generator) -> "World":
        """Draw the users and the items."""
        users, items = config.users, config.items
        age = random.integers(config.age_buckets, size=users)
        category = random.integers(config.categories, size=items)
        of_age = random.normal(size=(config.age_buckets, LATENT_DIM))
        of_category = random.normal(size=(config.categories, LATENT_DIM))
        appeal, substance = random.normal(size=(2, items))
        seen = np.stack([appeal, substance], axis=1) + 0.5 * random.normal(size=(items, 2))
        popularity = random.gamma(1.0, size=items) + 0.1
        return cls(
            user_id=_with_unknown(users, config.unknown_share, random),
            age_bucket=age + 1,
            taste=0.6 * of_age[age] + 0.8 * random.normal(size=(users, LATENT_DIM)),
            eagerness=random.normal(size=users),
            item_id=_with_unknown(items, config.unknown_share, random),
            category=category + 1,
            vector=0.9 * of_category[category] + 0.4 * random.normal(size=(items, LATENT_DIM)),
            appeal=appeal,
            substance=substance,
            quality=seen,
            popularity=popularity / popularity.sum(),
        )


@dataclass(frozen=True, slots=True)
class Memory:
    """The past of each user, updated after every round."""

    recent_items: Integers  # [U, history] newest first, padded
    requests: Floats  # [U]
    clicks: Floats  # [U]
    likes: Floats  # [U]
    dwell: Floats  # [U] seconds in all

    @classmethod
    def empty(cls, config: FeedConfig) -> "Memory":
        """The memory before the first round."""
        recent = np.full((config.users, config.history), PADDING)
        return cls(recent, *np.zeros((4, config.users)))

    def activity(self, users: Integers) -> Floats:
        """Requests, clicks, likes and dwell so far, smoothed and scaled to about one: `[v, 4]`."""
        requests, clicks = self.requests[users], self.clicks[users]
        return np.stack(
            [
                np.log1p(requests),
                np.log1p(clicks) - np.log1p(requests),
                (self.likes[users] + 1) / (clicks + 4),
                np.log1p(self.dwell[users] / (clicks + 1)) / 3,
            ],
            axis=1,
        )

    def record(self, users: Integers, item_id: Integers, seen: "Behaviour") -> None:
        """Add the behaviour of the visitors `[v]` on the items shown to them `[v, n]`."""
        newest = np.where((seen.click == 1) & (item_id > 0), item_id, PADDING)  # [v, n]
        both = np.concatenate([newest, self.recent_items[users]], axis=1)  # [v, n + history]
        front = np.argsort(both == PADDING, axis=1, kind="stable")  # ids first, order kept
        kept = self.recent_items.shape[1]
        self.recent_items[users] = np.take_along_axis(both, front, axis=1)[:, :kept]
        self.requests[users] += 1
        self.clicks[users] += seen.click.sum(axis=1)
        self.likes[users] += np.nansum(seen.like, axis=1)
        self.dwell[users] += seen.dwell.sum(axis=1)


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Behaviour of `v` visitors on `n` items each, `[v, n]`, and its true expectation."""

    click: Floats
    like: Floats  # NaN without a click
    dwell: Floats  # seconds; 0 without a click
    p_click: Floats
    p_like: Floats  # P(like | click)
    mean_dwell: Floats  # E[dwell], with and without a click


@dataclass(frozen=True, slots=True)
class Round:
    """`v` visitors with their features, the items shown to them, and their behaviour."""

    users: Integers  # [v]
    items: Integers  # [v, n]
    recent_items: Integers  # [v, history]
    activity: Floats  # [v, 4]
    seen: Behaviour


def simulate(config: FeedConfig) -> tuple[World, list[Round], Memory]:
    """Draw a world and simulate it; return its rounds, and the memory after the last one.

    The same configuration gives the same rounds.
    """
    random = np.random.default_rng(config.seed)
    world = World.draw(config, random)
    memory = Memory.empty(config)
    rounds = [_simulate_round(config, world, memory, random) for _ in range(config.rounds)]
    return world, rounds, memory


def _simulate_round(
    config: FeedConfig, world: World, memory: Memory, random: np.random.Generator
) -> Round:
    """Simulate one round; `memory` is read first and updated afterwards."""
    visits = random.random(config.users) < config.visit_rate
    visits[random.integers(config.users)] = True  # at least one visitor
    users = np.flatnonzero(visits)  # [v]
    items = random.choice(
        config.items, size=(len(users), config.candidates), p=world.popularity
    )  # [v, n]
    before = memory.recent_items[users], memory.activity(users)
    seen = _behave(world, users, items, random)
    memory.record(users, world.item_id[items], seen)
    return Round(users, items, *before, seen)


def _behave(
    world: World, users: Integers, items: Integers, random: np.random.Generator
) -> Behaviour:
    match = np.einsum("vd,vnd->vn", world.taste[users], world.vector[items])  # [v, n]
    match /= np.sqrt(LATENT_DIM)
    appeal, substance = world.appeal[items], world.substance[items]  # [v, n]
    eagerness = world.eagerness[users][:, None]  # [v, 1]
    p_click = _sigmoid(-1.9 + 1.3 * match + 0.9 * appeal + 0.6 * eagerness)
    p_like = _sigmoid(-1.0 + 0.9 * match + 1.1 * substance - 0.5 * appeal)
    mean_dwell = 20 * np.exp(0.4 * match + 0.5 * substance - 0.3 * appeal)
    clicked = random.random(p_click.shape) < p_click
    liked = random.random(p_like.shape) < p_like
    noise = DWELL_SIGMA * random.normal(size=p_click.shape)
    dwell = mean_dwell * np.exp(noise - DWELL_SIGMA**2 / 2)  # E[exp noise] = exp(σ²/2)
    return Behaviour(
        click=clicked.astype(np.float64),
        like=np.where(clicked, liked, np.nan),
        dwell=np.where(clicked, dwell, 0.0),
        p_click=p_click,
        p_like=p_like,
        mean_dwell=p_click * mean_dwell,
    )


def features(config: FeedConfig, embedding_dim: int, pooling: Pooling) -> tuple[Feature, ...]:
    """The features of the feed; the history shares the embedding table of the items."""
    items = config.items + 1  # with the unknown id

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

    `expected` contains P(click), P(like | click) and E[dwell]; without a click, `like` is NaN and
    `dwell` is 0. The same configuration gives the same data.
    """
    world, rounds, _ = simulate(config)
    return SplitsInMemory(
        train=_dataset(world, rounds[:-2]),
        validation=_dataset(world, rounds[-2:-1]),
        test=_dataset(world, rounds[-1:]),
    )


def write_tables(config: FeedConfig, folder: Path) -> dict[Path, int]:
    """Write `items.jsonl` and `users.jsonl` to a folder; return the number of rows of each."""
    world, _, memory = simulate(config)
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, rows in (("items", item_rows(world)), ("users", user_rows(world, memory))):
        lines = [orjson.dumps(row, option=_JSON_LINES) for row in rows]
        (folder / f"{name}.jsonl").write_bytes(b"".join(lines))
        written[folder / f"{name}.jsonl"] = len(lines)
    return written


def item_rows(world: World) -> Iterator[dict[str, object]]:
    """Yield the features of each item that has an id; lists are arrays."""
    for row in np.flatnonzero(world.item_id != UNKNOWN):
        yield {
            "item_id": int(world.item_id[row]),
            "category": int(world.category[row]),
            "quality": world.quality[row].astype(np.float32),
        }


def user_rows(world: World, memory: Memory) -> Iterator[dict[str, object]]:
    """Yield the features of each user who is logged in, with what was seen; lists are arrays."""
    activity = memory.activity(np.arange(len(world.user_id))).astype(np.float32)  # [U, 4]
    for row in np.flatnonzero(world.user_id != UNKNOWN):
        recent = memory.recent_items[row]
        yield {
            "user_id": int(world.user_id[row]),
            "age_bucket": int(world.age_bucket[row]),
            "recent_items": recent[recent != PADDING],
            "activity": activity[row],
        }


def _dataset(world: World, rounds: Sequence[Round]) -> Dataset:
    users = np.concatenate([one_round.users for one_round in rounds])  # [R]
    items = np.concatenate([one_round.items for one_round in rounds])  # [R, n]
    rows = items.reshape(-1)  # [R, n] → [B]

    def floats(arrays: list[Floats]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(arrays).reshape(-1).astype(np.float32))  # [B]

    return Dataset(
        user={
            "user_id": torch.from_numpy(world.user_id[users]),
            "age_bucket": torch.from_numpy(world.age_bucket[users]),
            "recent_items": torch.from_numpy(
                np.concatenate([one_round.recent_items for one_round in rounds])
            ),
            "activity": torch.from_numpy(
                np.concatenate([one_round.activity for one_round in rounds])
            ).float(),
        },
        candidate={
            "item_id": torch.from_numpy(world.item_id[rows]),
            "category": torch.from_numpy(world.category[rows]),
            "quality": torch.from_numpy(world.quality[rows]).float(),
        },
        row_to_request=torch.arange(len(users)).repeat_interleave(items.shape[1]),  # [B]
        labels={
            "click": floats([one_round.seen.click for one_round in rounds]),
            "like": floats([one_round.seen.like for one_round in rounds]),
            "dwell": floats([one_round.seen.dwell for one_round in rounds]),
        },
        expected={
            "click": floats([one_round.seen.p_click for one_round in rounds]),
            "like": floats([one_round.seen.p_like for one_round in rounds]),
            "dwell": floats([one_round.seen.mean_dwell for one_round in rounds]),
        },
        users=torch.from_numpy(users),
    )


def _with_unknown(count: int, share: float, random: np.random.Generator) -> Integers:
    return np.where(random.random(count) < share, UNKNOWN, np.arange(1, count + 1))


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-x)))
