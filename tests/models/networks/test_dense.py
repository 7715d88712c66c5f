"""Dense features enter the network scaled by constants that are fitted on training rows."""

import math

import numpy as np
import pytest
import torch

from models.networks.build import build
from models.networks.config import DenseFeature, Feature
from models.networks.dense import ColumnScale, DenseScaling
from models.networks.features import InputColumns
from tests.models.cases import small, tasks

NAN = math.nan


def dense(**changes):
    return DenseFeature(**({"name": "x", "side": "candidate", "scaling": "auto"} | changes))


def scaled(feature, training, raw):
    columns = InputColumns([feature])
    columns.fit({"x": torch.tensor(training).view(-1, feature.dim)})
    _, c = columns({}, {"x": torch.tensor(raw).view(-1, feature.dim)})
    return c


def test_training_rows_have_mean_zero_and_deviation_one():
    training = np.random.default_rng(0).normal(50, 7, size=1000).astype(np.float32).tolist()
    c = scaled(dense(), training, training)
    assert float(c.mean()) == pytest.approx(0, abs=1e-5)
    assert float(c.std(correction=0)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("scaling", "values", "is_log"),
    [
        ("auto", np.random.default_rng(0).normal(size=100_000), False),
        ("auto", np.random.default_rng(0).uniform(0, 90, size=100_000), False),
        ("auto", np.where(np.arange(10_000) % 100 == 0, 99_999.0, 0.0), False),
        ("auto", np.random.default_rng(0).lognormal(sigma=2, size=10_000), True),
        ("auto", np.append(np.zeros(9_999), 1e6), True),
        ("log", np.arange(10.0), True),
        ("standard", np.random.default_rng(0).lognormal(sigma=2, size=10_000), False),
        ("auto", np.full(10, 3.0), False),
    ],
)
def test_columns_with_a_heavy_tail_are_scaled_by_their_logarithm(scaling, values, is_log):
    assert ColumnScale.fit(values, dense(scaling=scaling)).is_log is is_log


def test_logarithm_keeps_the_sign():
    c = scaled(dense(scaling="log"), [-1e6, 1e6], [-1e6, 0.0, 1e6])
    assert c.flatten().tolist() == pytest.approx([-1, 0, 1], abs=1e-6)


def test_values_are_clipped_to_the_range_of_the_training_rows():
    c = scaled(dense(), [0.0, 1.0, 2.0], [-5.0, 0.0, 2.0, 1e30]).flatten().tolist()
    assert c[0] == c[1]
    assert c[2] == c[3]


def test_configured_range_replaces_that_of_the_training_rows():
    c = scaled(dense(clip=(0, 10)), [0.0, 2.0], [5.0, 10.0, 11.0]).flatten().tolist()
    assert c[0] < c[1] == c[2]


def test_missing_value_counts_as_the_median_and_is_indicated():
    feature = dense(fills_missing=True, missing_indicator=True)
    c = scaled(feature, [1.0, NAN, 3.0, 8.0], [NAN, 3.0])
    assert c[0, 0] == c[1, 0]
    assert c[:, 1].tolist() == [1, 0]


def test_missing_value_stays_nan_unless_it_is_filled():
    assert scaled(dense(), [1.0, 2.0], [NAN]).isnan().all()


def test_raw_features_beside_scaled_ones_are_unchanged():
    features: list[Feature] = [
        DenseFeature(name="raw", side="user"),
        DenseFeature(name="x", side="user", scaling="standard", dim=2),
    ]
    columns = InputColumns(features)
    columns.fit({"x": torch.tensor([[0.0, 10.0], [2.0, 30.0]])})
    u, _ = columns({"raw": torch.tensor([[7.25]]), "x": torch.tensor([[2.0, 10.0]])}, {})
    assert u.tolist() == [[7.25, 1.0, -1.0]]
    assert columns.defaults() == {}


def test_constant_column_and_column_without_values_are_finite():
    feature = dense(dim=2, fills_missing=True)
    c = scaled(feature, [[5.0, NAN], [5.0, NAN]], [[5.0, NAN], [6.0, 1.0]])
    assert c.isfinite().all()
    assert c[0].tolist() == [0, 0]


def test_defaults_are_the_fill_values():
    columns = InputColumns([dense(fills_missing=True, dim=2)])
    columns.fit({"x": torch.tensor([[1.0, 10.0], [3.0, NAN], [4.0, 30.0]])})
    assert columns.defaults() == {"x": (3.0, 20.0)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_reduced_precision_keeps_the_constants_in_full(dtype):
    scaling = DenseScaling([dense()])
    scaling.fit({"x": torch.tensor([[123_456.0], [123_457.0]])})
    before = scaling.mean.clone()
    scaling.to(dtype)
    assert scaling.mean.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(scaling.mean.float(), before)
    assert scaling(torch.tensor([[123_457.0]])).item() == pytest.approx(1)


def test_network_takes_its_scaling_along():
    features = [dense(fills_missing=True, missing_indicator=True)]
    network = build(small("mmoe"), features, tasks(2), seed=0).eval()
    network.columns.fit({"x": torch.tensor([[0.0], [5.0], [1e6]])})
    user: dict[str, torch.Tensor] = {}
    arguments = (user, {"x": torch.tensor([[NAN], [7.0]])}, torch.tensor([0, 0]))
    other = build(small("mmoe"), features, tasks(2), seed=1).eval()
    other.load_state_dict(network.state_dict())
    scripted = torch.jit.freeze(torch.jit.script(network))
    assert network(*arguments).isfinite().all()
    assert torch.equal(other(*arguments), network(*arguments))
    torch.testing.assert_close(scripted(*arguments), network(*arguments))
