"""The requests of a benchmark: resized examples in three forms, and files."""

import json
import struct

import numpy as np
import pytest

from app.benchmarking.requests import file_bodies, inputs_of, post_of, resized

EXAMPLE = {
    "user": {"user_id": 42, "recent": [4, 77]},
    "candidates": {"item_id": ["a", "b"], "tags": [[1], [2, 3]], "quality": [[0.1, 0.5], [0.3, 1]]},
    "candidate_keys": ["item-1", "item-2"],
    "ranking": {"top_k": 2},
}
INPUTS: list[dict[str, object]] = [
    {"name": "user_id", "kind": "id", "side": "user"},
    {"name": "recent", "kind": "id_list", "side": "user", "padding": -1, "padding_side": "left"},
    {"name": "item_id", "kind": "id", "side": "candidate"},
    {"name": "tags", "kind": "id_list", "side": "candidate", "padding": -7},
    {"name": "quality", "kind": "dense", "side": "candidate", "dim": 2},
]


def test_candidates_are_repeated_to_the_number_of_rows():
    request = resized(EXAMPLE, 5)
    assert request == {
        "user": EXAMPLE["user"],
        "candidates": {
            "item_id": ["a", "b", "a", "b", "a"],
            "tags": [[1], [2, 3], [1], [2, 3], [1]],
            "quality": [[0.1, 0.5], [0.3, 1], [0.1, 0.5], [0.3, 1], [0.1, 0.5]],
        },
    }
    assert resized(EXAMPLE, 1)["candidates"]["item_id"] == ["a"]


def test_only_some_features_are_sent():
    request = resized(EXAMPLE, 2, ["item_id"])
    assert request == {"user": {}, "candidates": {"item_id": ["a", "b"]}}
    with pytest.raises(ValueError, match=r"unknown feature y \(known: user_id, recent, item_id"):
        resized(EXAMPLE, 2, ["y"])
    with pytest.raises(ValueError, match="no candidates"):
        resized(EXAMPLE, 2, ["user_id"])


def test_keys_of_tables_become_columns():
    """A list of keys must not repeat any, and has no name in V2."""
    tables = [{"table": "items", "key": "sku"}, {"table": "users", "key": "user_id"}]
    request = resized({"user": 42, "candidates": ["a", "b"]}, 3, tables=tables)
    assert request == {"user": {"user_id": 42}, "candidates": {"sku": ["a", "b", "a"]}}
    inputs = inputs_of({"inputs": INPUTS, "tables": tables})
    assert [tensor["name"] for tensor in inputs] == [*(tensor["name"] for tensor in INPUTS), "sku"]
    post = post_of("feed", None, "v2-json", request, inputs)
    assert json.loads(post.body)["inputs"] == [
        {"name": "user_id", "datatype": "INT64", "shape": [1, 1], "data": [42]},
        {"name": "sku", "datatype": "BYTES", "shape": [3, 1], "data": ["a", "b", "a"]},
    ]


def test_native_form_names_model_and_version():
    post = post_of("feed", None, "json", resized(EXAMPLE, 2), INPUTS)
    assert post.path == "/v1/models/feed/score"
    assert json.loads(post.body) == resized(EXAMPLE, 2)
    assert post_of("feed", 7, "json", {}, []).path == "/v1/models/feed/versions/7/score"


def test_v2_json_has_a_tensor_per_feature_with_padded_lists():
    post = post_of("feed", None, "v2-json", resized(EXAMPLE, 3), INPUTS)
    assert post.path == "/v2/models/feed/infer"
    by_name = {tensor.pop("name"): tensor for tensor in json.loads(post.body)["inputs"]}
    assert by_name["user_id"] == {"datatype": "INT64", "shape": [1, 1], "data": [42]}
    assert by_name["recent"] == {"datatype": "INT64", "shape": [1, 2], "data": [4, 77]}
    assert by_name["item_id"] == {"datatype": "BYTES", "shape": [3, 1], "data": ["a", "b", "a"]}
    assert by_name["tags"] == {"datatype": "INT64", "shape": [3, 2], "data": [1, -7, 2, 3, 1, -7]}
    assert by_name["quality"]["shape"] == [3, 2]


def test_lists_are_padded_on_the_side_of_the_feature():
    example = {"candidates": {"recent": [[1], [2, 3]]}}
    feature = INPUTS[1] | {"side": "candidate"}
    post = post_of("feed", None, "v2-json", resized(example, 2), [feature])
    assert json.loads(post.body)["inputs"][0]["data"] == [-1, 1, 2, 3]


def test_v2_binary_has_the_bytes_after_the_document():
    post = post_of("feed", 2, "v2-binary", resized(EXAMPLE, 3, ["item_id", "quality"]), INPUTS)
    assert post.path == "/v2/models/feed/versions/2/infer"
    length = int(post.headers["inference-header-content-length"])
    head, content = json.loads(post.body[:length]), post.body[length:]
    sizes = [tensor["parameters"]["binary_data_size"] for tensor in head["inputs"]]
    assert sum(sizes) == len(content)
    assert content[: sizes[0]] == b"".join(
        struct.pack("<I", 1) + text for text in (b"a", b"b", b"a")
    )
    numbers = np.frombuffer(content[sizes[0] :], "<f4")
    np.testing.assert_array_equal(numbers, np.array([0.1, 0.5, 0.3, 1, 0.1, 0.5], np.float32))


def test_file_is_one_document_or_one_a_line():
    assert file_bodies(b'{\n "candidates": {}\n}\n') == [b'{\n "candidates": {}\n}']
    assert file_bodies(b'{"a": 1}\n\n{"b": 2}\n') == [b'{"a": 1}', b'{"b": 2}']
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        file_bodies(b'{"a": 1}\n{"b"\n')
    with pytest.raises(ValueError, match="not JSON"):
        file_bodies(b"candidates\n1")
    with pytest.raises(ValueError, match="must contain a request"):
        file_bodies(b"\n")
