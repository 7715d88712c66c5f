import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from models import data
from models.export.export import task_outputs
from models.networks.config import NetworkConfig
from models.training import experiment
from models.training.evaluate import (
    auc,
    calibration,
    evaluate,
    mae,
    mean_group_auc,
    mse,
    ndcg,
    predict,
    xauc,
)
from tests import TINY_EXPERIMENT

ROWS = st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.integers(0, 4)), max_size=30)


def pairwise_auc(labels, scores):
    positives = [s for y, s in zip(labels, scores, strict=True) if y == 1]
    negatives = [s for y, s in zip(labels, scores, strict=True) if y == 0]
    if not positives or not negatives:
        return math.nan
    won = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives)
    return won / (len(positives) * len(negatives))


@given(ROWS)
def test_auc_is_the_share_of_pairs_won_with_ties_half(rows):
    labels, scores = np.array(rows, dtype=float).reshape(-1, 2).T

    assert auc(labels, scores) == pytest.approx(pairwise_auc(labels, scores), nan_ok=True)


@given(ROWS, st.randoms())
def test_user_auc_is_the_mean_over_users_that_have_both_classes(rows, random):
    labels, scores = np.array(rows, dtype=float).reshape(-1, 2).T
    users = np.array([random.randrange(3) * 7 for _ in rows], dtype=np.int64)
    aucs = [pairwise_auc(labels[users == user], scores[users == user]) for user in (0, 7, 14)]
    defined = [value for value in aucs if not math.isnan(value)]
    expected = np.mean(defined) if defined else math.nan

    assert mean_group_auc(labels, scores, users) == pytest.approx(expected, nan_ok=True)


def test_xauc_is_near_the_share_of_all_pairs_in_order():
    random = np.random.default_rng(0)
    labels = random.integers(5, size=200).astype(float)
    scores = np.round(labels + random.normal(size=200))
    difference = np.subtract.outer(labels, labels)
    agreement = np.sign(difference) * np.sign(np.subtract.outer(scores, scores))
    expected = ((agreement + 1) / 2)[difference != 0].mean()

    assert xauc(labels, scores) == pytest.approx(expected, abs=0.005)
    assert xauc(labels, labels) == 1
    assert xauc(labels, -labels) == 0
    assert xauc(labels, np.zeros(200)) == 0.5


def test_errors_and_calibration():
    labels, scores = np.array([0.0, 2.0, 4.0]), np.array([1.0, 2.0, 1.0])

    assert mae(labels, scores) == pytest.approx(4 / 3)
    assert mse(labels, scores) == pytest.approx(10 / 3)
    assert calibration(labels, scores) == pytest.approx(4 / 6)


@pytest.mark.parametrize("metric", [auc, xauc, mae, mse, calibration])
def test_metric_of_no_rows_is_not_defined(metric):
    assert math.isnan(metric(np.array([]), np.array([])))


class Recall(nn.Module):
    """A network that knows each row's outputs: `item_id` is the row's number."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, user, candidate, row_to_request):
        assert not self.training
        assert user["user_id"].shape[0] == row_to_request.max() + 1
        return self.outputs[candidate["item_id"]]


def oracle(experiment_, dataset):
    """A network that outputs what is to be expected, and the dataset that asks it."""
    click, like, dwell = (dataset.expected[name].double() for name in ("click", "like", "dwell"))
    is_esmm = experiment_.network.architecture == "esmm"
    outputs = [click.logit(), (click * like).log() if is_esmm else like.logit(), dwell.log()]
    rows = torch.arange(dataset.rows)
    asking = data.Dataset(
        dataset.user,
        {**dataset.candidate, "item_id": rows},
        dataset.row_to_request,
        dataset.labels,
        dataset.expected,
        dataset.users,
    )
    return Recall(torch.stack(outputs, 1)), asking


@pytest.fixture
def tiny():
    return experiment.read(TINY_EXPERIMENT)


@pytest.mark.parametrize("architecture", ["ple", "esmm"])
def test_true_expectation_reaches_the_oracle_metrics(tiny, architecture):
    tiny = tiny.model_copy(
        update={"network": NetworkConfig(architecture=architecture), "clamp": {"dwell": (0, 1e9)}}
    )
    network, test = oracle(tiny, data.generate(tiny.data).train)

    evaluation = evaluate(network, test, tiny.tasks, task_outputs(tiny))

    assert set(evaluation) == {"click", "like", "dwell"}
    for figures in evaluation.values():
        model = {name: value for name, value in figures.items() if not name.startswith("oracle_")}
        assert model == pytest.approx({name: figures[f"oracle_{name}"] for name in model}, rel=1e-5)
        assert 0.8 < figures["calibration"] < 1.25


def test_like_is_evaluated_on_defined_rows(tiny):
    network, test = oracle(tiny, data.generate(tiny.data).test)
    clicked = test.labels["click"] == 1
    expected = auc(test.labels["like"][clicked].numpy(), test.expected["like"][clicked].numpy())

    figures = evaluate(network, test, tiny.tasks, task_outputs(tiny))["like"]

    assert figures["auc"] == pytest.approx(expected, abs=1e-6)


def test_scores_are_clamped_before_evaluation(tiny):
    tiny = tiny.model_copy(update={"clamp": {"dwell": (0, 0.001)}})
    network, test = oracle(tiny, data.generate(tiny.data).test)

    assert evaluate(network, test, tiny.tasks, task_outputs(tiny))["dwell"]["calibration"] < 0.001


def test_undefined_metric_is_left_out(tiny):
    network, test = oracle(tiny, data.generate(tiny.data).test)
    nobody = {**test.labels, "click": torch.zeros(test.rows)}
    test = data.Dataset(
        test.user, test.candidate, test.row_to_request, nobody, test.expected, test.users
    )

    evaluation = evaluate(network, test, tiny.tasks, task_outputs(tiny))

    assert evaluation["click"] == {}
    assert evaluation["like"] == {}


@pytest.mark.parametrize(("architecture", "known"), [("ple", {}), ("esmm", {"like"})])
def test_data_without_true_expectation_has_no_oracle(tiny, architecture, known):
    tiny = tiny.model_copy(update={"network": NetworkConfig(architecture=architecture)})
    network, test = oracle(tiny, data.generate(tiny.data).test)
    expected = {name: value for name, value in test.expected.items() if name in known}
    test = data.Dataset(
        test.user, test.candidate, test.row_to_request, test.labels, expected, test.users
    )

    figures = evaluate(network, test, tiny.tasks, task_outputs(tiny))["like"]

    assert set(figures) == {"auc", "user_auc", "ndcg_10", "calibration"}


def test_predictions_come_in_the_order_of_the_rows(tiny):
    network, test = oracle(tiny, data.generate(tiny.data).test)

    torch.testing.assert_close(predict(network, test, batch_rows=20), network.outputs)


def test_ndcg_is_that_of_the_definition():
    random = np.random.default_rng(3)
    requests = np.repeat(np.arange(30), random.integers(1, 40, size=30))
    labels = (random.random(len(requests)) < 0.2).astype(np.float64)
    scores = random.permutation(len(requests)).astype(np.float64)
    values = []
    for request in range(30):
        rows = requests == request
        if rows.sum() < 2 or labels[rows].sum() == 0:
            continue
        gains = [1 / math.log2(i + 2) for i in range(10)]
        ranked = labels[rows][np.argsort(-scores[rows])][:10]
        best = np.sort(labels[rows])[::-1][:10]
        values.append(np.dot(ranked, gains[: len(ranked)]) / np.dot(best, gains[: len(best)]))
    assert ndcg(labels, scores, requests) == pytest.approx(np.mean(values))


def test_ndcg_of_single_rows_is_not_defined():
    assert math.isnan(ndcg(np.ones(3), np.zeros(3), np.arange(3)))
    assert ndcg(np.array([0.0, 1.0]), np.array([0.1, 0.9]), np.zeros(2, np.int64)) == 1
