import numpy as np
import pytest
import torch

from models import data
from models.compare import timing
from models.networks import build as networks
from models.training import experiment
from tests import TINY_EXPERIMENT

TINY = experiment.read(TINY_EXPERIMENT)


@pytest.fixture(scope="module")
def test_set():
    return data.generate(TINY.data).test


def test_every_network_is_timed_as_often_at_every_size(test_set):
    times = timing.forward_times({"a": TINY, "b": TINY}, test_set, rows=(1, 3), turns=4)

    assert {name: {n: len(t) for n, t in by_rows.items()} for name, by_rows in times.items()} == {
        "a": {1: 4, 3: 4},
        "b": {1: 4, 3: 4},
    }
    assert min(t for by_rows in times.values() for taken in by_rows.values() for t in taken) > 0


def test_networks_take_turns_in_one_thread(test_set, monkeypatch):
    calls = []

    class Recorded:
        def __init__(self, settings):
            self.name = settings.name

        def run(self, request):
            calls.append((self.name, request.rows, torch.get_num_threads()))

    monkeypatch.setattr(timing, "served", Recorded)
    other = TINY.model_copy(update={"name": "other"})
    timing.forward_times({"a": TINY, "b": other}, test_set, rows=(2,), turns=3)

    assert calls == [("tiny", 2, 1), ("other", 2, 1)] * (timing.WARM_UP_TURNS + 3)


def test_ratio_is_the_median_over_the_turns():
    times = {"a": {1: [2.0, 9.0, 4.0]}, "b": {1: [1.0, 3.0, 1.0]}}

    assert timing.ratio(times, "a", "b", 1) == 3.0


def test_timed_network_is_in_evaluation_mode(test_set):
    network = networks.build(TINY.network, TINY.features, TINY.tasks, seed=0).eval()
    request = timing.one_request(test_set, 100)

    outputs = timing.served(TINY).run(request)

    expected = network(
        {name: torch.from_numpy(column) for name, column in request.user.items()},
        {name: torch.from_numpy(column) for name, column in request.candidate.items()},
        torch.from_numpy(request.row_to_request),
    )
    assert request.rows == 100
    np.testing.assert_allclose(outputs, expected.detach().numpy(), atol=1e-6)
