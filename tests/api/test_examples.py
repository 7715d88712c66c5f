"""Example requests: valid as they are."""

import gc
import json
import weakref
from typing import Any

import numpy as np
import pytest

from app.api.examples import DEFAULT_CANDIDATES, example_request
from app.artifacts.golden import Golden
from app.artifacts.inputs import IdListInput, Input
from app.artifacts.loader import Model
from app.protocol.dialect import ParseContext
from app.protocol.native import read_request
from tests.support.builders import INPUTS, Request, batch, manifest, own_policies, program


def model(*, sizes: tuple[int, ...] = (1, 4, 2), inputs: tuple[Input, ...] = INPUTS) -> Model:
    """A model without files: the example needs the manifest and the golden batch only."""
    one = program(Request(), inputs=inputs)
    return Model(manifest(inputs=inputs), one, Golden.record(one, batch(inputs, sizes)))


def read(sent: dict[str, Any], served: Model, *, max_candidates: int):
    """Return the features, the ranking options and the keys of an example."""
    policies = own_policies(served.manifest)
    return read_request(sent, ParseContext(served, policies, {}, max_candidates))


def test_example_request_is_valid_after_a_json_round_trip():
    served = model()
    sent = json.loads(json.dumps(example_request(served)))
    features, ranking, keys = read(sent, served, max_candidates=100)
    golden = served.golden.batch
    assert features.rows == DEFAULT_CANDIDATES == 3
    assert keys == ["item-1", "item-2", "item-3"]
    assert ranking.top_k == 3
    for name, column in features.user.items():
        np.testing.assert_array_equal(column, golden.user[name][1:2])
    for name, column in features.candidate.items():
        np.testing.assert_array_equal(column, golden.candidate[name][1:4])


def test_example_is_smaller_if_every_golden_request_is():
    sent = example_request(model(sizes=(2, 1)))
    assert len(sent["candidates"]["item"]) == len(sent["candidate_keys"]) == 2


def test_numbers_are_the_shortest_text_of_their_float32():
    served = model()
    served.golden.batch.candidate["quality"][1] = np.float32(0.1)
    served.golden.batch.user["age"][1] = np.float32(0.2)
    sent = example_request(served)
    assert sent["candidates"]["quality"][0] == [0.1, 0.1]
    assert sent["user"]["age"] == 0.2


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_example_lists_have_no_padding(padding_side):
    recent = IdListInput(
        name="recent", side="user", vocabulary_size=10, max_length=3, padding_side=padding_side
    )
    served = model(inputs=(INPUTS[0], recent, *INPUTS[2:]))
    row = [-1, 4, 7] if padding_side == "left" else [4, 7, -1]
    served.golden.batch.user["recent"][1] = row
    sent = example_request(served)
    assert sent["user"]["recent"] == [4, 7]
    features, _, _ = read(sent, served, max_candidates=9)
    assert features.user["recent"].tolist() == [row]


def test_id_equal_to_the_padding_stays_within_its_list():
    recent = IdListInput(name="recent", side="user", vocabulary_size=10, max_length=3, padding=0)
    served = model(inputs=(INPUTS[0], recent, *INPUTS[2:]))
    served.golden.batch.user["recent"][1] = [0, 7, 0]
    sent = example_request(served)
    features, _, _ = read(sent, served, max_candidates=9)
    assert features.user["recent"].tolist() == [[0, 7, 0]]


def test_example_lists_have_no_reserved_padding():
    recent = IdListInput(name="recent", side="user", vocabulary_size=10, max_length=3, padding=0)
    served = model(inputs=(INPUTS[0], recent.measured(), *INPUTS[2:]))
    served.golden.batch.user["recent"][1] = [0, 7, 0]
    sent = example_request(served)
    assert sent["user"]["recent"] == [7]
    features, _, _ = read(sent, served, max_candidates=9)
    assert features.user["recent"].tolist() == [[7, 0, 0]]


def test_example_does_not_change_the_golden_request():
    served = model()
    before = served.golden.to_bytes()
    example_request(served)["user"]["age"] = 99
    assert served.golden.to_bytes() == before


def test_example_is_made_once_and_goes_away_with_its_model(monkeypatch):
    served = model()
    first = example_request(served)
    monkeypatch.setattr("app.api.examples._make", None)  # cannot be called again
    again = example_request(served)
    assert again == first
    again["user"].clear()
    assert example_request(served) == first
    gone = weakref.ref(served)
    del served
    gc.collect()
    assert gone() is None
