import math

import numpy as np
import pytest
import torch

from models.data import SyntheticConfig, synthetic
from models.data.synthetic import NOISE_VARIANCE, Curves


def config(**changes):
    return SyntheticConfig(rows=4000, dim=16, **changes)


def labels(**changes):
    train = synthetic.generate(config(**changes)).train
    return train.labels["y1"], train.labels["y2"]


@pytest.mark.parametrize("p", [-1.0, -0.3, 0.0, 0.5, 1.0])
def test_the_weights_have_the_chosen_cosine_and_length(p):
    curves = Curves.draw(config(correlation=p, scale=2.5), np.random.default_rng(0))
    w1, w2 = curves.weights

    assert np.linalg.norm(w1) == pytest.approx(2.5)
    assert np.linalg.norm(w2) == pytest.approx(2.5)
    assert w1 @ w2 / 2.5**2 == pytest.approx(p, abs=1e-9)


def test_labels_are_a_line_and_sines():
    curves = Curves(np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([1.0, 3.0]), np.array([0.0, 0.5]))

    y = curves(np.array([[0.7, -0.2]]))

    first = 0.7 + math.sin(0.7) + math.sin(3 * 0.7 + 0.5)
    second = -0.4 + math.sin(-0.4) + math.sin(3 * -0.4 + 0.5)
    np.testing.assert_allclose(y, [[first, second]])


def test_related_weights_make_related_labels():
    correlations = [np.corrcoef(*labels(correlation=p, seed=2))[0, 1] for p in (0.0, 0.5, 0.9, 1.0)]

    assert correlations == sorted(correlations)
    assert abs(correlations[0]) < 0.1
    assert correlations[-1] > 0.98  # the noise alone keeps them apart


def test_the_noise_has_the_stated_variance():
    train = synthetic.generate(config()).train
    noise = torch.cat([train.labels[y] - train.expected[y] for y in ("y1", "y2")])

    assert noise.var().item() == pytest.approx(NOISE_VARIANCE, rel=0.1)
    assert noise.mean().item() == pytest.approx(0, abs=0.005)


def test_splits_are_tenths_and_share_no_row():
    splits = synthetic.generate(config())
    parts = [splits.train, splits.validation, splits.test]
    rows = torch.cat([torch.cat([p.user["x_user"], p.candidate["x_candidate"]], 1) for p in parts])

    assert [part.rows for part in parts] == [3200, 400, 400]
    assert len(rows.unique(dim=0)) == 4000


def test_the_same_seed_gives_the_same_data():
    assert torch.equal(labels(seed=1)[0], labels(seed=1)[0])
    assert not torch.equal(labels(seed=1)[0], labels(seed=2)[0])


def test_the_features_are_both_halves_of_x():
    features = synthetic.features(SyntheticConfig(dim=7))
    train = synthetic.generate(SyntheticConfig(dim=7, rows=100)).train

    assert [(f.name, f.side) for f in features] == [
        ("x_user", "user"),
        ("x_candidate", "candidate"),
    ]
    assert train.user["x_user"].shape == (80, 3)
    assert train.candidate["x_candidate"].shape == (80, 4)
