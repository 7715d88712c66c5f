import numpy as np
import pytest
import torch

from models import data
from models.data import PADDING, UNKNOWN, FeedConfig, feed
from models.networks.config import DenseFeature, IdFeature

CONFIG = FeedConfig(users=300, items=200, rounds=6, candidates=10, history=5, seed=3)


@pytest.fixture(scope="module")
def splits():
    return feed.generate(CONFIG)


@pytest.fixture(scope="module")
def simulated():
    world, rounds, _ = feed.simulate(CONFIG)
    return world, rounds


def test_the_same_seed_gives_the_same_feed(splits):
    again, other = feed.generate(CONFIG), feed.generate(CONFIG.model_copy(update={"seed": 4}))

    torch.testing.assert_close(again.test.user, splits.test.user, rtol=0, atol=0)
    torch.testing.assert_close(again.train.labels, splits.train.labels, equal_nan=True)
    assert other.test.rows != splits.test.rows or not torch.equal(
        other.test.candidate["item_id"], splits.test.candidate["item_id"]
    )


def test_likes_and_dwell_need_a_click(splits):
    labels = splits.train.labels
    clicked = labels["click"] == 1

    assert set(labels["click"].unique().tolist()) == {0, 1}
    assert torch.equal(labels["like"].isnan(), ~clicked)
    assert set(labels["like"][clicked].unique().tolist()) == {0, 1}
    assert torch.equal(labels["dwell"] > 0, clicked)


def test_behaviour_matches_its_expectation(splits):
    labels, expected = splits.train.labels, splits.train.expected
    clicked = labels["click"] == 1
    for name, rows in (("click", clicked >= 0), ("like", clicked), ("dwell", clicked >= 0)):
        value, label = expected[name][rows].double(), labels[name][rows].double()
        for part in torch.argsort(value).tensor_split(4):  # also within each quarter
            error = label[part].std().item() / len(part) ** 0.5
            difference = (label[part].mean() - value[part].mean()).item()
            assert abs(difference) < 4 * error, name


def test_dwell_has_a_heavy_tail(splits):
    dwell = splits.train.labels["dwell"]
    dwell = dwell[dwell > 0]

    assert dwell.mean() > 1.3 * dwell.median()


def test_every_column_fits_its_feature(splits):
    features = data.features(CONFIG, embedding_dim=8, pooling="mean")
    for split in (splits.train, splits.validation, splits.test):
        assert [f.name for f in features] == [*split.user, *split.candidate]
        for feature in features:
            columns = split.user if feature.side == "user" else split.candidate
            rows = split.requests if feature.side == "user" else split.rows
            column = columns[feature.name]
            if isinstance(feature, DenseFeature):
                assert column.dtype == torch.float32
                assert column.shape == (rows, feature.dim)
                assert column.isfinite().all()
                continue
            lowest = UNKNOWN if isinstance(feature, IdFeature) else PADDING
            shape = (rows,) if isinstance(feature, IdFeature) else (rows, feature.max_length)
            assert column.dtype == torch.int64
            assert column.shape == shape
            assert column.min() >= lowest
            assert column.max() < feature.vocabulary_size


def test_some_users_and_items_are_unknown(splits):
    for column in (splits.train.user["user_id"], splits.train.candidate["item_id"]):
        assert 0 < (column == UNKNOWN).float().mean() < 0.1


def test_the_history_holds_earlier_clicks_newest_first(simulated):
    world, rounds = simulated
    clicked: dict[int, list[int]] = {user: [] for user in range(CONFIG.users)}
    lengths = set()
    for one_round in rounds:
        for v, user in enumerate(one_round.users.tolist()):
            expected = clicked[user][: CONFIG.history]
            padding = [PADDING] * (CONFIG.history - len(expected))
            assert one_round.recent_items[v].tolist() == expected + padding
            lengths.add(len(expected))
            ids = world.item_id[one_round.items[v]]
            new = ids[(one_round.seen.click[v] == 1) & (ids != UNKNOWN)].tolist()
            clicked[user] = new + clicked[user]
    assert lengths == set(range(CONFIG.history + 1))


def test_activity_contains_earlier_rounds_only(simulated):
    _, rounds = simulated
    first = rounds[0].activity

    assert (first == first[0]).all()  # nobody has done anything yet
    assert len(np.unique(rounds[-1].activity[:, 1])) > 10


def test_the_splits_are_the_rounds_in_time(splits, simulated):
    _, rounds = simulated

    assert splits.test.users.tolist() == rounds[-1].users.tolist()
    assert splits.validation.users.tolist() == rounds[-2].users.tolist()
    assert splits.train.requests == sum(len(one_round.users) for one_round in rounds[:-2])
