"""String ids through the infer route: BYTES in binary and in JSON, and the problems in them."""

from typing import Any

import numpy as np
import pytest

from app.artifacts.encoding import Hashed, Listed, write_vocabulary
from app.artifacts.inputs import IdInput, IdListInput
from app.artifacts.publish import publish
from app.artifacts.store import Store
from app.main import gatehouse
from app.settings import Settings
from tests.protocol.open_inference.tensors import Sent, in_binary, in_json, outputs_of, packed
from tests.support.builders import INPUTS, Request, batch, description, scripted
from tests.support.in_process import client_of

FILE = "vocabulary.item.jsonl"
RECENT = IdListInput(
    name="recent", side="user", vocabulary_size=9, max_length=3, encoding=Hashed(buckets=8)
)
ITEM = IdInput(
    name="item", side="candidate", vocabulary_size=9, encoding=Listed(file=FILE), default=""
)
SENT = [
    Sent("age", "FP32", (1, 1), [[30.0]]),
    Sent("recent", "BYTES", (1, 2), [["a", "日本"]]),
    Sent("item", "BYTES", (3, 1), [["b"], ["é"], ["nobody"]]),
    Sent("quality", "FP32", (3, 2), [[1.0, 2.0]] * 3),
]
NATIVE: dict[str, Any] = {
    "user": {"age": 30.0, "recent": ["a", "日本"]},
    "candidates": {"item": ["b", "é", "nobody"], "quality": [[1.0, 2.0]] * 3},
}
INFER = "/v2/models/feed/infer"


@pytest.fixture(scope="module")
async def strings(tmp_path_factory):
    """A client of a service whose model has string ids."""
    store = Store(tmp_path_factory.mktemp("strings"))
    inputs = (INPUTS[0], RECENT, ITEM, INPUTS[3])
    described = description(inputs=inputs)
    files = {FILE: write_vocabulary(["b", "é", "c"])}
    publish(store, described, scripted(Request()), batch(inputs), files)
    settings = Settings(store=store.folder, lanes=1, request_timeout_ms=30_000)
    async with gatehouse(settings) as parts:
        await parts.deployment.refresh()
        async with client_of(parts) as client:
            yield client


async def test_string_ids_score_as_in_the_native_api(strings):
    native = (await strings.post("/v1/score", json=NATIVE)).json()
    assert len(set(native["scores"]["click"])) == 3
    body, headers = in_binary(SENT)
    in_bytes = await strings.post(INFER, content=body, headers=headers)
    as_text = await strings.post(INFER, json=in_json(SENT))
    assert in_bytes.content == as_text.content
    found = outputs_of(as_text)
    for name, scores in native["scores"].items():
        assert found[name] == np.array(scores, np.float32).tolist()


async def test_an_input_with_a_default_may_be_left_out(strings):
    sent = [tensor for tensor in SENT if tensor.name != "item"]
    candidates = {"quality": NATIVE["candidates"]["quality"]}
    native = (await strings.post("/v1/score", json=NATIVE | {"candidates": candidates})).json()
    found = outputs_of(await strings.post(INFER, json=in_json(sent)))
    assert found["rank_score"] == pytest.approx(native["rank_score"], rel=1e-6)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\x01\0\0\0a", "/inputs/2: item must have 3 elements for its shape, has 1"),
        (b"\x01\0\0\0a\xff\0\0\0", "/inputs/2: item ends within element 1"),
        (b"\x01\0\0\0\xff" * 3, "/inputs/2: item must be UTF-8 text (element 0)"),
        (b"\x01\0\0\0a" * 4, "/inputs/2: item has more data after its 3 elements"),
    ],
)
async def test_malformed_binary_strings_are_reported(strings, content, expected):
    document = in_json(SENT)
    del document["inputs"][2]["data"]
    document["inputs"][2]["parameters"] = {"binary_data_size": len(content)}
    body, headers = packed(document, content)
    response = await strings.post(INFER, content=body, headers=headers)
    assert response.status_code == 422
    assert response.json() == {"error": expected}


async def test_wrong_values_for_strings_are_reported(strings):
    document = in_json(SENT)
    document["inputs"][2]["data"] = ["b", 3, "c"]
    document["inputs"][1] |= {"datatype": "INT64", "data": [1, 2]}
    response = await strings.post(INFER, json=document)
    assert response.status_code == 422
    assert response.json()["error"] == (
        "/inputs/1/datatype: recent cannot be INT64; supported: BYTES; "
        "/inputs/2/data/1: item must be a string"
    )
