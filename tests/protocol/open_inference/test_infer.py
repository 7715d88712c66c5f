"""The infer routes with a real model: the native API's scores, or a clear error."""

import gzip
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest

from app.main import gatehouse
from app.settings import Settings
from tests.protocol.open_inference.tensors import (
    Sent,
    in_binary,
    in_json,
    inputs_of,
    outputs_of,
    packed,
)
from tests.support.in_process import client_of

INFER = "/v2/models/tiny/infer"
SCORE = "/v1/models/tiny/score"
OUTPUTS = ["click", "like", "dwell", "rank_score"]
JSON = "application/json"


async def post(client, inputs, **members):
    return await client.post(INFER, json=in_json(inputs, **members))


async def post_binary(client, inputs, **members):
    body, headers = in_binary(inputs, **members)
    return await client.post(INFER, content=body, headers=headers)


def native_outputs(answer):
    everything = answer["scores"] | {"rank_score": answer["rank_score"]}
    return {name: np.float32(numbers).tolist() for name, numbers in everything.items()}


def named(inputs, name):
    return next(tensor for tensor in inputs if tensor.name == name)


def changed(inputs, name, **changes):
    return [replace(tensor, **changes) if tensor.name == name else tensor for tensor in inputs]


def random_requests(example, count=12):
    rng = np.random.default_rng(3)
    for size in rng.integers(1, 200, count):
        yield {
            "user": example["user"]
            | {
                "user_id": int(rng.integers(-3, 70)),
                "recent_items": rng.integers(0, 60, rng.integers(0, 5)).tolist(),
            },
            "candidates": {
                "item_id": rng.integers(-5, 60, size).tolist(),
                "category": rng.integers(1, 5, size).tolist(),
                "quality": rng.normal(size=(size, 2)).tolist(),
            },
        }


async def test_json_and_binary_give_the_native_scores_bit_for_bit(client, card, example):
    for request in random_requests(example):
        inputs = inputs_of(card["inputs"], request)
        native = native_outputs((await client.post(SCORE, json=request)).json())
        for response in (
            await post(client, inputs),
            await post(client, inputs, parameters={"binary_data_output": True}),
            await post_binary(client, inputs),
            await post_binary(client, inputs, parameters={"binary_data_output": True}),
        ):
            assert response.status_code == 200, response.text
            assert outputs_of(response) == native


async def test_response_names_model_and_version_and_repeats_the_id(client, inputs):
    for mine in ("mine", "", "x" * 256):
        answer = (await post(client, inputs, id=mine)).json()
        assert answer["id"] == mine
    assert (answer["model_name"], answer["model_version"]) == ("tiny", "1")
    assert [output["name"] for output in answer["outputs"]] == OUTPUTS
    assert "id" not in (await post(client, inputs)).json()


async def test_response_without_binary_outputs_is_plain_json(client, inputs):
    response = await post_binary(client, inputs)
    assert response.headers["content-type"] == JSON
    assert "inference-header-content-length" not in response.headers


async def test_outputs_come_in_the_requested_order_and_form(client, inputs):
    everything = outputs_of(await post(client, inputs))
    chosen = [
        {"name": "rank_score", "parameters": {"binary_data": True}},
        {"name": "click"},
        {"name": "dwell", "parameters": {"binary_data": True}},
    ]
    response = await post(client, inputs, outputs=chosen)
    assert response.headers["content-type"] == "application/octet-stream"
    head = orjson.loads(
        response.content[: int(response.headers["inference-header-content-length"])]
    )
    assert ["data" in output for output in head["outputs"]] == [False, True, False]
    found = outputs_of(response)
    assert list(found) == ["rank_score", "click", "dwell"]
    assert found == {name: everything[name] for name in found}


async def test_output_may_differ_from_the_default_form(client, inputs):
    chosen = [{"name": "click", "parameters": {"binary_data": False}}, {"name": "like"}]
    response = await post(client, inputs, outputs=chosen, parameters={"binary_data_output": True})
    head = orjson.loads(
        response.content[: int(response.headers["inference-header-content-length"])]
    )
    assert ["data" in output for output in head["outputs"]] == [True, False]


async def test_data_may_be_nested_as_its_shape(client, inputs):
    flat = await post(client, inputs)
    nested = {"inputs": [tensor.as_json(nested=True) for tensor in inputs]}
    assert (await client.post(INFER, json=nested)).content == flat.content


async def test_feature_of_width_1_may_have_one_dimension(client, inputs):
    flat = [
        replace(tensor, shape=tensor.shape[:1], values=tensor.flat)
        if tensor.shape[1] == 1
        else tensor
        for tensor in inputs
    ]
    assert any(len(tensor.shape) == 1 for tensor in flat)
    assert (await post(client, flat)).content == (await post(client, inputs)).content
    assert (await post_binary(client, flat)).content == (await post(client, inputs)).content


async def test_user_row_may_be_repeated_for_every_candidate(client, inputs, card):
    users = {feature["name"] for feature in card["inputs"] if feature["side"] == "user"}
    tiled = [
        replace(tensor, shape=(3, *tensor.shape[1:]), values=tensor.values * 3)
        if tensor.name in users
        else tensor
        for tensor in inputs
    ]
    once = await post(client, inputs)
    assert (await post(client, tiled)).content == once.content
    assert (await post_binary(client, tiled)).content == once.content


async def test_user_rows_that_differ_are_refused(client, inputs):
    rows = [[0.1, 0.2, 0.3, 0.4]] * 2 + [[0.1, 0.2, 0.3, 0.5]]
    wrong = changed(inputs, "activity", shape=(3, 4), values=rows)
    response = await post_binary(client, wrong)
    assert response.status_code == 422
    assert "activity is a user feature: send one row, or n equal rows" in response.json()["error"]


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "INT32", "INT64"])
async def test_numbers_of_other_datatypes_are_widened(client, inputs, datatype):
    values = [[1.0, -2.0], [0.0, 3.0], [4.0, 128.0]]
    if datatype.startswith("INT"):
        values = [[int(number) for number in row] for row in values]
    expected = await post(client, changed(inputs, "quality", values=values))
    assert expected.status_code == 200
    other = changed(inputs, "quality", values=values, datatype=datatype)
    for response in (await post(client, other), await post_binary(client, other)):
        assert response.content == expected.content


async def test_int32_ids_are_widened(client, inputs):
    ids = changed(inputs, "item_id", datatype="INT32")
    expected = await post(client, inputs)
    assert (await post(client, ids)).content == expected.content
    assert (await post_binary(client, ids)).content == expected.content


async def test_short_list_may_be_narrower_or_padded(client, inputs):
    def recent(*ids):
        return changed(inputs, "recent_items", shape=(1, len(ids)), values=[list(ids)])

    narrow = await post(client, recent(7, 3))
    assert narrow.status_code == 200
    assert (await post(client, recent(7, 3, -1, -1))).content == narrow.content
    assert (await post_binary(client, recent(7, 3, -1))).content == narrow.content
    none = await post(client, recent())
    assert none.status_code == 200
    assert (await post_binary(client, recent(-1, -1, -1, -1))).content == none.content
    assert none.content != narrow.content


async def test_no_candidates_give_empty_outputs(client, inputs, card):
    users = {feature["name"] for feature in card["inputs"] if feature["side"] == "user"}
    empty = [
        tensor if tensor.name in users else replace(tensor, shape=(0, tensor.shape[1]), values=[])
        for tensor in inputs
    ]
    for response in (await post(client, empty), await post_binary(client, empty)):
        assert response.status_code == 200
        assert outputs_of(response) == {name: [] for name in OUTPUTS}
    response = await post_binary(client, empty, parameters={"binary_data_output": True})
    assert outputs_of(response) == {name: [] for name in OUTPUTS}
    no_user = [replace(tensor, shape=(0, tensor.shape[1]), values=[]) for tensor in inputs]
    assert outputs_of(await post(client, no_user)) == {name: [] for name in OUTPUTS}


async def test_an_id_outside_the_vocabulary_is_unknown_and_counted(client, inputs):
    wrong = changed(inputs, "category", values=[[10**12], [0], [-5]])
    before = await unknown_categories(client)
    response = await post_binary(client, wrong)
    assert response.status_code == 200
    assert await unknown_categories(client) == before + 2


async def unknown_categories(client):
    series = 'gatehouse_unknown_id_total{feature="category",model="tiny"} '
    text = (await client.get("/metrics")).text
    return float(text.partition(series)[2].split("\n")[0] or 0)


async def test_parameters_choose_the_policy_and_its_weights(client, inputs, example, card):
    weights = {"click": 0.25, "dwell": -1}
    native = await client.post(SCORE, json=example | {"ranking": {"weights": weights}})
    parameters = {"policy": card["ranking"]["name"]} | {
        f"weights.{task}": weight for task, weight in weights.items()
    }
    response = await post(client, inputs, parameters=parameters)
    assert outputs_of(response) == native_outputs(native.json())


async def test_a_timeout_in_microseconds_is_the_requests_deadline(client, inputs):
    response = await post(client, inputs, parameters={"timeout": 1})
    assert response.status_code in (503, 504)
    assert "error" in response.json()
    assert (await post(client, inputs, parameters={"timeout": 20_000_000})).status_code == 200


async def test_priorities_are_accepted(client, inputs):
    for priority in range(4):
        response = await post(client, inputs, parameters={"priority": priority})
        assert response.status_code == 200


async def test_a_version_can_be_pinned(client, inputs):
    pinned = await client.post("/v2/models/tiny/versions/1/infer", json=in_json(inputs))
    assert pinned.content == (await post(client, inputs)).content


async def test_compressed_request_is_read(client, inputs):
    body, headers = in_binary(inputs)
    headers["content-encoding"] = "gzip"
    response = await client.post(INFER, content=gzip.compress(body), headers=headers)
    assert response.content == (await post(client, inputs)).content


async def test_response_has_server_timing_and_request_id(client, inputs):
    body, headers = in_binary(inputs)
    headers["x-request-id"] = "abc-123"
    response = await client.post(INFER, content=body, headers=headers)
    assert response.headers["x-request-id"] == "abc-123"
    stages = [stage.split(";")[0] for stage in response.headers["server-timing"].split(", ")]
    assert stages == ["decode", "encode", "queue", "collate", "compute", "rank", "respond"]
    metrics = (await client.get("/metrics")).text
    counted = 'gatehouse_requests_total{model="tiny",route="/v2/models/{model}/infer",status="200"}'
    assert counted in metrics


# Members of a wrong request, and the error.
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no inputs": ({"inputs": None}, "/inputs: must be a list"),
    "an input that is not an object": ({"inputs": [1]}, "/inputs/0: must be an object"),
    "no features": (
        {"inputs": []},
        "/inputs: required inputs are missing: activity, age_bucket, category, item_id, quality, "
        "recent_items, user_id",
    ),
    "an id that is not a string": ({"id": 7}, "/id: must be a string"),
    "an id that is too long": (
        {"id": "x" * 257},
        "/id: must have at most 256 characters, has 257",
    ),
    "an unknown member": (
        {"output": []},
        '/output: unknown key "output"; did you mean "outputs"? (known: ',
    ),
    "outputs that are not a list": ({"outputs": {}}, "/outputs: must be a list"),
    "an unknown output": (
        {"outputs": [{"name": "nope"}]},
        "/outputs/0/name: unknown output (known: click, dwell, like, rank_score)",
    ),
    "an output twice": (
        {"outputs": [{"name": "click"}, {"name": "click"}]},
        "/outputs/1: duplicate output click",
    ),
    "a classification": (
        {"outputs": [{"name": "click", "parameters": {"classification": 2}}]},
        "/outputs/0/parameters/classification: classification is not supported",
    ),
    "binary_data that is not a boolean": (
        {"outputs": [{"name": "click", "parameters": {"binary_data": 1}}]},
        "/outputs/0/parameters/binary_data: must be true or false",
    ),
    "an output in shared memory": (
        {"outputs": [{"name": "click", "parameters": {"shared_memory_region": "r"}}]},
        "/outputs/0/parameters/shared_memory_region: shared memory is not supported",
    ),
    "a sequence": (
        {"parameters": {"sequence_id": 1}},
        "/parameters/sequence_id: sequences are not supported",
    ),
    "parameters that are not an object": ({"parameters": []}, "/parameters: must be an object"),
    "an unknown parameter": (
        {"parameters": {"x": 1}},
        '/parameters/x: unknown parameter "x" (known: binary_data_output, policy, ',
    ),
    "an unknown policy": (
        {"parameters": {"policy": "x"}},
        "/parameters/policy: unknown policy (known: ",
    ),
    "a weight that is not a number": (
        {"parameters": {"weights.click": "1"}},
        "/parameters/weights.click: must be a number",
    ),
    "a weight of an unknown task": (
        {"parameters": {"weights.buy": 1}},
        '/parameters/weights.buy: policy default has no weight "buy" (adjustable: ',
    ),
    "a negative timeout": (
        {"parameters": {"timeout": -1}},
        "/parameters/timeout: must be an integer between 0 and 600000000",
    ),
    "a timeout over the limit": (
        {"parameters": {"timeout": 10**12}},
        "/parameters/timeout: must be an integer between 0 and 600000000",
    ),
    "a priority out of range": ({"parameters": {"priority": 4}}, "/parameters/priority: must be 1"),
    "binary_data_output that is not a boolean": (
        {"parameters": {"binary_data_output": "yes"}},
        "/parameters/binary_data_output: must be true or false",
    ),
}


@pytest.mark.parametrize("case", WRONG)
async def test_wrong_request_is_reported_with_place_and_rule(client, inputs, case):
    members, expected = WRONG[case]
    response = await client.post(INFER, json=in_json(inputs) | members)
    assert response.status_code == 422
    assert list(response.json()) == ["error"]
    assert expected in response.json()["error"]


QUALITY: dict[str, Any] = {
    "name": "quality",
    "datatype": "FP32",
    "shape": [3, 2],
    "data": [1.0] * 6,
}
# Changes of the input `quality` (position 6), and the error.
WRONG_INPUT: dict[str, tuple[dict[str, Any], str]] = {
    "no name": ({"name": None}, "/inputs/6/name: unknown input (known: activity, "),
    "an unknown input": (
        {"name": "qualty"},
        '/inputs/6/name: unknown input; did you mean "quality"? (known',
    ),
    "a feature twice": ({"name": "category"}, "/inputs/6: duplicate input category"),
    "a datatype that is refused": (
        {"datatype": "UINT8"},
        "/inputs/6/datatype: quality cannot be UINT8; supported: FP32, FP16, BF16, INT64, INT32",
    ),
    "a datatype of another kind": ({"datatype": "BYTES"}, "quality cannot be BYTES"),
    "no datatype": (
        {"datatype": 3},
        "/inputs/6/datatype: quality has an unknown datatype; supported: FP32",
    ),
    "too many dimensions": ({"shape": [3, 2, 1]}, "quality must have shape [n, 2]"),
    "too few": ({"shape": [6]}, "quality must have shape [n, 2]"),
    "another width": ({"shape": [2, 3]}, "/inputs/6/shape: quality must have shape [n, 2]"),
    "a negative dimension": ({"shape": [-3, 2]}, "/inputs/6/shape: quality must have shape"),
    "a dimension that is not a number": ({"shape": [3, True]}, "quality must have shape [n, 2]"),
    "a huge dimension": ({"shape": [3, 2**62]}, "quality must have shape [n, 2]"),
    "another number of rows": (
        {"shape": [2, 2], "data": [1, 2, 3, 4]},
        "/inputs/6/shape: quality has 2 rows, but item_id has 3",
    ),
    "too little data": ({"data": [1.0] * 5}, "/inputs/6/data: quality must have 6 values, has 5"),
    "data that is not a list": ({"data": 1}, "/inputs/6/data: quality must be a list"),
    "no data": ({"data": None}, "/inputs/6/data: quality must be a list"),
    "a ragged row": (
        {"data": [[1, 2], [1], [1, 2]]},
        "/inputs/6/data/1: quality must have 2 values, has 1",
    ),
    "a string": ({"data": [[1, 2], [1, "x"], [1, 2]]}, "/inputs/6/data/1/1: quality must be a num"),
    "null": ({"data": [1, 2, None, 4, 5, 6]}, "/inputs/6/data/2: quality must be a number"),
    "a number beyond float32": (
        {"data": [1, 2, 3, 1e39, 5, 6]},
        "/inputs/6: quality must be finite and within the range of float32 (row 1, element 1)",
    ),
    "a fraction as an integer": (
        {"datatype": "INT64", "data": [1, 2, 3, 4.5, 5, 6]},
        "/inputs/6/data/3: quality must be an integer",
    ),
    "an integer that does not fit": (
        {"datatype": "INT32", "data": [1, 2, 3, 2**31, 5, 6]},
        "/inputs/6/data/3: quality must fit in INT32",
    ),
    "shared memory": (
        {"parameters": {"shared_memory_region": "r"}},
        "/inputs/6/parameters/shared_memory_region: shared memory is not supported",
    ),
    "parameters that are not an object": (
        {"parameters": [1]},
        "/inputs/6/parameters: must be an object",
    ),
    "an unknown member": (
        {"dtype": "x"},
        '/inputs/6/dtype: unknown key "dtype"; did you mean "datatype"?',
    ),
}


@pytest.mark.parametrize("case", WRONG_INPUT)
async def test_wrong_input_is_reported_with_place_and_rule(client, inputs, case):
    changes, expected = WRONG_INPUT[case]
    document = in_json([tensor for tensor in inputs if tensor.name != "quality"])
    document["inputs"].append(QUALITY | changes)
    response = await client.post(INFER, json=document)
    assert response.status_code == 422
    assert expected in response.json()["error"]


@pytest.mark.parametrize("content_type", ["np", "pd", "str", None])
async def test_content_type_parameters_change_nothing(client, inputs, content_type):
    """MLServer's codecs put them into every request, input and output."""
    parameters = {"content_type": content_type, "headers": None}
    document = in_json(inputs, outputs=[{"name": "click"}, {"name": "rank_score"}])
    expected = await client.post(INFER, json=document)
    assert expected.status_code == 200
    document["parameters"] = parameters
    for tensor in (*document["inputs"], *document["outputs"]):
        tensor["parameters"] = parameters
    assert (await client.post(INFER, json=document)).content == expected.content


async def test_base64_data_is_refused_because_it_would_be_taken_for_ids(client, inputs):
    response = await post(client, inputs, parameters={"content_type": "base64"})
    assert response.status_code == 422
    assert response.json()["error"].startswith("/parameters/content_type: base64 is not supported")


@pytest.mark.parametrize("shape", [[-1], [-1, 1], [3, 1], None])
async def test_outputs_may_have_datatype_and_shape(client, inputs, shape):
    expected = await post(client, inputs, outputs=[{"name": "click"}])
    described = [{"name": "click", "datatype": "FP32", "shape": shape}]
    response = await post(client, inputs, outputs=described)
    assert (response.status_code, response.content) == (200, expected.content)


async def test_output_of_another_datatype_is_refused(client, inputs):
    for datatype in ("FP64", "INT64", "BYTES", 7, ["FP32"]):
        response = await post(client, inputs, outputs=[{"name": "click", "datatype": datatype}])
        assert response.status_code == 422
        expected = "/outputs/0/datatype: must be FP32, the datatype of every output"
        assert response.json()["error"] == expected


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
async def test_nonfinite_number_is_reported_by_row_and_element(client, inputs, number):
    values = [[1.0, 2.0], [number, 1.0], [1.0, number]]
    response = await post_binary(client, changed(inputs, "quality", values=values))
    assert response.status_code == 422
    rule = "/inputs/6: quality must be finite and within the range of float32"
    assert response.json()["error"] == f"{rule} (row 1, element 0); {rule} (row 2, element 1)"


async def test_all_problems_are_reported_at_once(client, inputs):
    wrong = changed(inputs, "quality", datatype="BOOL")
    wrong = changed(wrong, "category", shape=(3, 9))
    response = await post(client, wrong, id=3, outputs=[{}], parameters={"priority": "high"})
    pointers = [problem.split(":")[0] for problem in response.json()["error"].split("; /")]
    assert len(pointers) == 5


async def test_no_value_is_echoed(client, inputs):
    secret = "value-that-nobody-may-see"
    response = await client.post(
        INFER,
        json=in_json(inputs)
        | {"inputs": [{"name": secret}, QUALITY | {"data": [secret] * 6, "datatype": secret}]},
    )
    assert response.status_code == 422
    assert secret not in response.text


@pytest.mark.parametrize("rows", [2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("send", [post, post_binary])
async def test_impossible_row_counts_are_refused_without_allocating(client, inputs, rows, send):
    endless = changed(inputs, "recent_items", shape=(rows, 0), values=[])
    answer = await send(client, endless)
    assert answer.status_code == 422
    assert f"recent_items has {rows} rows" in answer.json()["error"]


async def test_more_tensors_than_inputs_are_refused(client, inputs):
    document = in_json(inputs)
    document["inputs"] *= 2
    response = await client.post(INFER, json=document)
    assert response.status_code == 422
    assert "/inputs: too many inputs: 14, the model has 7" in response.json()["error"]


# A body that is truncated, extended, or of another length than it says.
@pytest.mark.parametrize("length", ["-1", "x", "99999", "", "1" * 30, "0"])
async def test_a_wrong_header_length_is_400(client, inputs, length):
    body, headers = in_binary(inputs)
    headers["inference-header-content-length"] = length
    response = await client.post(INFER, content=body, headers=headers)
    assert response.status_code == 400
    assert "error" in response.json()


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\0"], ids=["cut", "longer"])
async def test_truncated_or_overlong_body_is_400(client, inputs, change):
    body, headers = in_binary(inputs)
    response = await client.post(INFER, content=change(body), headers=headers)
    assert response.status_code == 400
    assert "binary_data_size" in response.json()["error"]


@pytest.mark.parametrize("size", [-1, "8", 1.5, True, 2**64 - 1])
async def test_invalid_binary_data_size_is_400(client, inputs, size):
    document = in_json(inputs)
    document["inputs"][0]["parameters"] = {"binary_data_size": size}
    body, headers = packed(document, b"")
    response = await client.post(INFER, content=body, headers=headers)
    assert response.status_code == 400


async def test_binary_data_size_that_does_not_fit_the_shape_is_reported(client, inputs):
    heads = [tensor.as_binary() for tensor in inputs]
    head, content = heads[-1]
    heads[-1] = (head | {"parameters": {"binary_data_size": len(content) + 4}}, content + b"abcd")
    body, headers = packed(
        {"inputs": [head for head, _ in heads]}, b"".join(content for _, content in heads)
    )
    response = await client.post(INFER, content=body, headers=headers)
    assert response.status_code == 422
    expected = "/inputs/6/parameters/binary_data_size: quality must be 24 for its shape"
    assert expected in response.json()["error"]


async def test_data_and_binary_data_together_are_refused(client, inputs):
    document = in_json(inputs)
    document["inputs"][0]["parameters"] = {"binary_data_size": 8}
    body, headers = packed(document, bytes(8))
    response = await client.post(INFER, content=body, headers=headers)
    assert "/inputs/0: user_id must have either data or" in response.json()["error"]


async def test_statuses_equal_those_of_the_native_api(client, inputs):
    body = orjson.dumps(in_json(inputs))
    headers = {"content-type": JSON}
    for path, content, more, status in (
        ("/v2/models/other/infer", body, {}, 404),
        ("/v2/models/tiny/versions/2/infer", body, {}, 404),
        (INFER, b"{", {}, 400),
        (INFER, b"[]", {}, 422),
        (INFER, bytes(100_001), {}, 413),
        (INFER, body, {"content-type": "text/csv"}, 415),
        (INFER, body, {"content-encoding": "br"}, 415),
        (INFER, body, {"x-request-timeout-ms": "soon"}, 422),
    ):
        response = await client.post(path, content=content, headers=headers | more)
        assert response.status_code == status
        assert response.headers["content-type"] == JSON
        assert list(response.json()) == ["error"]


async def test_too_many_candidates_are_413(client, card, example):
    request = example | {"candidates": {name: [] for name in example["candidates"]}}
    rows = 1001
    many = [
        replace(tensor, shape=(rows, tensor.shape[1]), values=[])
        if tensor.shape[0] == 0
        else tensor
        for tensor in inputs_of(card["inputs"], request)
    ]
    response = await post(client, many)
    assert response.status_code == 413
    assert "too many candidates: 1001, limit 1000" in response.json()["error"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
async def test_other_methods_are_405(client, method):
    response = await client.request(method, INFER)
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"


async def test_server_without_model_answers_503_with_retry_after(tmp_path):
    async with gatehouse(Settings(store=tmp_path, lanes=1)) as parts, client_of(parts) as client:
        response = await client.post(INFER, json={})
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json() == {"error": "no model is active yet"}


def test_bf16_twin_writes_the_upper_half_of_a_float32():
    sent = Sent("x", "BF16", (1, 2), [[1.0, -2.0]])
    assert sent.as_binary()[1] == bytes.fromhex("803f00c0")
