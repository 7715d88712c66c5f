import numpy as np
import pytest
import torch

from models import data
from models.compare.figures import comparable_figures
from models.export.export import task_outputs
from models.networks.build import build
from models.training import experiment
from models.training.evaluate import auc, calibration, evaluate, predict
from tests import TINY_EXPERIMENT

TINY = experiment.read(TINY_EXPERIMENT)


@pytest.fixture(scope="module")
def test_set():
    return data.generate(TINY.data).test


def under(architecture):
    network = TINY.network.model_copy(update={"architecture": architecture, "esmm_body": "mmoe"})
    return TINY.model_copy(update={"network": network})


def built(settings):
    return build(settings.network, settings.features, settings.tasks, seed=3)


def test_network_and_the_same_network_under_esmm_have_the_same_figures(test_set):
    plain, product = under("mmoe"), under("esmm")

    assert comparable_figures(built(plain), plain, test_set) == comparable_figures(
        built(product), product, test_set
    )


def test_metrics_equal_those_of_training(test_set):
    for architecture, name in (("mmoe", "like given click"), ("esmm", "click and like")):
        settings = under(architecture)
        network = built(settings)

        own = evaluate(network, test_set, settings.tasks, task_outputs(settings))

        figures = comparable_figures(network, settings, test_set)
        assert list(figures) == ["click", "like given click", "click and like", "dwell"]
        assert figures["click"] == own["click"]
        assert figures[name] == pytest.approx(own["like"], abs=1e-6)
        assert figures["dwell"] == own["dwell"]


def test_the_product_is_of_both_probabilities_over_every_row(test_set):
    settings = under("mmoe")
    network = built(settings)

    click, like = torch.sigmoid(predict(network, test_set)[:, :2].double()).numpy().T
    both = np.nan_to_num(test_set.labels["like"].numpy()).astype(np.float64)

    figures = comparable_figures(network, settings, test_set)["click and like"]
    assert figures["auc"] == pytest.approx(auc(both, click * like), abs=1e-4)
    assert figures["calibration"] == pytest.approx(calibration(both, click * like), abs=1e-5)


def test_esmm_after_a_click_is_its_factor_over_clicked_rows(test_set):
    settings = under("esmm")
    network = built(settings)

    outputs = predict(network, test_set).double()
    conditional = torch.exp(outputs[:, 1]) / torch.sigmoid(outputs[:, 0])
    clicked = test_set.labels["click"] == 1

    figures = comparable_figures(network, settings, test_set)["like given click"]
    labels, scores = test_set.labels["like"][clicked].double(), conditional[clicked]
    assert figures["calibration"] == pytest.approx(float(scores.sum() / labels.sum()), abs=1e-5)


def test_tasks_without_sample_space_keep_their_metrics(test_set):
    settings = under("mmoe").model_copy(update={"tasks": (TINY.tasks[0], TINY.tasks[2])})

    assert list(comparable_figures(built(settings), settings, test_set)) == ["click", "dwell"]
