"""A request by keys equals, to the last bit, the request that has every feature."""

import json
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from hypothesis import given, strategies as st

from app.artifacts.columns import ModelInputs
from app.artifacts.inputs import DenseInput, IdInput, IdListInput
from app.artifacts.manifest import Manifest
from app.artifacts.model_tables import ModelTables
from app.engine.gpu.arena import Arena, Layout
from app.engine.gpu.buckets import Bucket
from app.engine.lanes import Staging, collate
from app.errors import FieldError, InvalidRequest, PayloadTooLarge
from app.protocol.dialect import ParseContext
from app.protocol.native import Native, read_request
from app.protocol.open_inference.infer import HEADER_LENGTH, OpenInference
from app.protocol.validation import MISSING
from app.ranking.batch import rank_alone
from tests.protocol.open_inference.tensors import Sent
from tests.support.builders import manifest, own_policies
from tests.support.fakes import chunk_of, sums_model
from tests.support.model_tables import MemoryTable, bound, memory_table

FEED = manifest(
    inputs=(
        DenseInput(name="age", side="user"),
        IdListInput(name="recent", side="user", vocabulary_size=10, max_length=3, default=()),
        IdInput(name="user_id", side="user", vocabulary_size=1000, default=0),
        IdInput(name="item", side="candidate", vocabulary_size=10),
        DenseInput(name="quality", side="candidate", dim=2, default=(0.5, 0.25)),
        DenseInput(name="price", side="candidate", default=(1.0,)),
        DenseInput(name="distance", side="candidate", default=(9.0,)),
    )
)
ITEMS: dict[int, dict[str, Any]] = {
    key: {"item": key, "quality": [key / 7, -key], "price": key / 3} for key in (*range(8), 5000)
}
SKUS: dict[str, dict[str, Any]] = {f"sku-{key}": row for key, row in ITEMS.items()}
USERS: dict[int, dict[str, Any]] = {
    key: {"user_id": key, "age": key / 9, "recent": [key % 10]} for key in (7, 42, 99999)
}
NAMES = ("item", "quality", "price", "distance")


@cache
def tables(*, keyed_by: str = "item", unknown: str = "error") -> ModelTables:
    rows: dict[Any, dict[str, Any]] = ITEMS if keyed_by == "item" else SKUS
    return bound(
        FEED,
        memory_table(FEED, "items", keyed_by, rows, unknown=unknown, label="3.2"),
        memory_table(FEED, "users", "user_id", USERS),
    )


def context(found: ModelTables, of: Manifest = FEED, **changes: Any) -> ParseContext:
    model = replace(sums_model(), manifest=of)
    fields: dict[str, Any] = {"headers": {}, "max_candidates": 100, "tables": found} | changes
    return ParseContext(model, own_policies(of), **fields)


def parse(document: object, found: ModelTables, **changes: Any) -> Any:
    return Native().parse(orjson.dumps(document), context(found, **changes))


def problems(document: object, found: ModelTables | None = None) -> list[FieldError]:
    with pytest.raises(InvalidRequest) as caught:
        parse(document, tables() if found is None else found)
    return caught.value.problems


def inputs(*parsed: Any) -> list[ModelInputs]:
    """What the model gets of a batch of requests, by each way to collate it."""
    model = replace(sums_model(), manifest=FEED)
    chunks = [chunk_of(request.features, model=model) for request in parsed]
    rows = sum(chunk.rows for chunk in chunks)
    layout = Layout(FEED, Bucket(rows + 3, len(chunks) + 1))
    views = layout.over(torch.zeros(layout.size, dtype=torch.uint8))
    Arena(FEED, views).fill(chunks)
    arena = ModelInputs(
        {name: tensor.numpy()[: len(chunks)] for name, tensor in views.user.items()},
        {name: tensor.numpy()[:rows] for name, tensor in views.candidate.items()},
        views.row_to_request.numpy()[:rows],
    )
    return [collate(chunks), Staging().collate(chunks), arena]


def assert_same(got: ModelInputs, wanted: ModelInputs) -> None:
    for mine, other in ((got.user, wanted.user), (got.candidate, wanted.candidate)):
        assert mine.keys() == other.keys()
        for name, column in mine.items():
            assert column.dtype == other[name].dtype
            assert column.shape == other[name].shape, name
            assert column.tobytes() == other[name].tobytes(), name
    np.testing.assert_array_equal(got.row_to_request, wanted.row_to_request)


values = {
    "item": st.integers(0, 12),
    "quality": st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=2),
    "price": st.floats(0, 10, width=32),
    "distance": st.floats(0, 10, width=32),
}


@st.composite
def requests(draw: st.DrawFn, keyed_by: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A request that uses tables, and the same with every feature, from plain dictionaries."""
    items: dict[Any, dict[str, Any]] = ITEMS if keyed_by == "item" else SKUS
    keys = draw(st.lists(st.sampled_from(list(items)), min_size=1, max_size=6, unique=True))
    form = draw(st.sampled_from(["keys", "columns", "objects"]))
    others = [name for name in NAMES if name != keyed_by]
    if form == "keys":
        sent: list[dict[str, Any]] = [{keyed_by: key} for key in keys]
        candidates: Any = keys
    elif form == "columns":
        names = draw(st.lists(st.sampled_from(others), unique=True))
        sent = [{keyed_by: key} | {name: draw(values[name]) for name in names} for key in keys]
        candidates = {name: [row[name] for row in sent] for name in (keyed_by, *names)}
    else:
        sent = []
        for key in keys:
            names = draw(st.lists(st.sampled_from(others), unique=True))
            row = {keyed_by: key} | {name: draw(values[name]) for name in names}
            if draw(st.booleans()):  # this one needs no key
                row = {name: draw(values[name]) for name in NAMES}
            sent.append(row)
        candidates = [
            row[keyed_by] if list(row) == [keyed_by] and draw(st.booleans()) else row
            for row in sent
        ]
    whole = []
    for row in sent:
        from_table = items.get(row.get(keyed_by), {})
        merged = {"distance": 9.0} | from_table | row
        whole.append({name: merged[name] for name in NAMES})
    key = draw(st.sampled_from(list(USERS)))
    overrides = draw(st.fixed_dictionaries({}, optional={"age": st.integers(0, 90)}))
    user: Any = {"user_id": key} | overrides
    full_user = USERS[key] | user
    if not overrides and draw(st.booleans()):
        user = key
    full = {name: [row[name] for row in whole] for name in NAMES}
    return {"user": user, "candidates": candidates}, {"user": full_user, "candidates": full}


@pytest.mark.no_cover
@pytest.mark.parametrize("keyed_by", ["item", "sku"])
@given(data=st.data())
def test_request_by_keys_equals_the_request_with_every_feature(keyed_by, data):
    pairs = data.draw(st.lists(requests(keyed_by), min_size=1, max_size=4))
    found = tables(keyed_by=keyed_by)
    short = [parse(sent, found) for sent, _ in pairs]
    whole = [parse(full, ModelTables()) for _, full in pairs]
    expected, *_ = inputs(*whole)
    mixed = [data.draw(st.sampled_from(pair)) for pair in zip(short, whole, strict=True)]
    for got in (*inputs(*short), *inputs(*mixed)):
        assert_same(got, expected)


@given(data=st.data())
def test_chunks_of_a_request_by_keys_equal_those_of_the_whole_one(data):
    sent, full = data.draw(requests("item"))
    model = replace(sums_model(), manifest=FEED)
    whole = parse(full, ModelTables()).features
    cut = data.draw(st.integers(0, whole.rows))
    short = parse(sent, tables()).features
    for features, start, stop in ((short, 0, cut), (short, cut, whole.rows)):
        got = Staging().collate([chunk_of(features, start, stop, model=model)])
        assert_same(got, collate([chunk_of(whole, start, stop, model=model)]))


def tensors(document: dict[str, Any], of: Manifest) -> list[Sent]:
    """A request in columns as tensors, for V2."""
    made = []
    for side, is_user in (("user", True), ("candidates", False)):
        for name, sent in document[side].items():
            column = [sent] if is_user else sent
            feature = next((feature for feature in of.inputs if feature.name == name), None)
            is_dense = isinstance(feature, DenseInput)
            kind = "FP32" if is_dense else "BYTES" if isinstance(column[0], str) else "INT64"
            if is_dense or isinstance(feature, IdListInput):
                column = [value if isinstance(value, list) else [value] for value in column]
                shape: tuple[int, ...] = (len(column), len(column[0]))
            else:
                shape = (len(column),)
            made.append(Sent(name, kind, shape, column))
    return made


def infer(document: dict[str, Any], found: ModelTables, *, is_binary: bool, **changes: Any) -> Any:
    made = tensors(document, FEED)
    if not is_binary:
        body = orjson.dumps({"inputs": [tensor.as_json() for tensor in made]})
        return OpenInference().parse(body, context(found, **changes))
    heads, content = zip(*[tensor.as_binary() for tensor in made], strict=True)
    head = orjson.dumps({"inputs": heads})
    length = {HEADER_LENGTH: b"%d" % len(head)}
    return OpenInference().parse(
        head + b"".join(content), context(found, headers=length, **changes)
    )


@pytest.mark.no_cover
@pytest.mark.parametrize("is_binary", [False, True], ids=["json", "binary"])
@pytest.mark.parametrize("keyed_by", ["item", "sku"])
@given(data=st.data())
def test_v2_request_by_keys_equals_the_request_with_every_feature(keyed_by, is_binary, data):
    sent, full = data.draw(requests(keyed_by))
    if isinstance(sent["candidates"], list):
        if any(isinstance(candidate, dict) for candidate in sent["candidates"]):
            return
        sent["candidates"] = {keyed_by: sent["candidates"]}
    if not isinstance(sent["user"], dict):
        sent["user"] = {"user_id": sent["user"]}
    short = infer(sent, tables(keyed_by=keyed_by), is_binary=is_binary)
    whole = infer(full, ModelTables(), is_binary=is_binary)
    expected, *_ = inputs(whole)
    for got in inputs(short):
        assert_same(got, expected)


def test_keys_alone_read_each_row_of_the_table_once_when_the_batch_is_collated():
    items = memory_table(FEED, "items", "item", ITEMS)
    parsed = [parse({"user": USERS[7], "candidates": [1, 2]}, bound(FEED, items)) for _ in range(3)]
    assert items.takes == []
    inputs(*parsed)
    assert items.takes == [6, 6, 6]  # three ways to collate, one access each


def test_requests_of_one_batch_may_have_different_versions_of_a_table():
    newer = {key: row | {"price": 100 + key} for key, row in ITEMS.items()}
    versions = [
        bound(FEED, memory_table(FEED, "items", "item", rows)) for rows in (ITEMS, newer, ITEMS)
    ]
    sent = {"user": USERS[7], "candidates": [1, 2]}
    got = inputs(*[parse(sent, version) for version in versions])
    prices = np.array([1 / 3, 2 / 3, 101, 102, 1 / 3, 2 / 3], np.float32)
    for batch in got:
        np.testing.assert_array_equal(batch.candidate["price"].ravel(), prices)


def test_full_request_does_not_ask_a_table():
    full = {
        "user": USERS[7] | {"user_id": -1},
        "candidates": {"item": [77], "quality": [[1, 2]], "price": [3], "distance": [4]},
    }
    features = parse(full, tables()).features
    assert features.tables is None


def test_candidate_with_every_feature_needs_no_known_key():
    whole = {"item": 77, "quality": [1, 2], "price": 3, "distance": 4}
    features = parse({"user": 7, "candidates": [whole, 1]}, tables()).features
    assert features.tables.unknown == {}
    assert features.candidate["price"].ravel().tolist() == [3, np.float32(1 / 3)]


# What is not in the table.


def test_unknown_keys_are_refused_with_their_positions():
    (problem,) = problems({"user": 7, "candidates": [1, 99, 2, 98]})
    assert problem.pointer == "/candidates"
    assert problem.detail == (
        "2 of 4 keys are not in the items table (version 3.2): at positions 1, 3"
    )
    assert "99" not in problem.detail


def test_unknown_user_is_refused():
    (problem,) = problems({"user": 8, "candidates": [1]})
    assert problem == FieldError("/user", "the users table (version 1) has no such key")
    (problem,) = problems({"user": {"user_id": 8}, "candidates": [1]})
    assert problem.pointer == "/user/user_id"


def test_at_most_a_hundred_positions_are_listed():
    keys = list(range(1000, 1150))
    with pytest.raises(InvalidRequest) as caught:
        parse({"user": 7, "candidates": keys}, tables(), max_candidates=500)
    (problem,) = caught.value.problems
    assert problem.detail.endswith("98, 99 and 50 more")
    assert caught.value.unknown_keys == {"items": 150}


def test_unknown_key_gets_the_defaults_of_the_features():
    sent = {"user": 7, "candidates": [1, 6000, 2]}
    features = parse(sent, tables(unknown="default")).features
    full = {
        "item": [1, 6000, 2],
        "quality": [ITEMS[1]["quality"], [0.5, 0.25], ITEMS[2]["quality"]],
        "price": [1 / 3, 1.0, 2 / 3],
        "distance": [9.0] * 3,
    }
    whole = parse({"user": USERS[7], "candidates": full}, ModelTables())
    assert features.tables.unknown["items"].tolist() == [1]
    assert_same(inputs(parse(sent, tables(unknown="default")))[0], inputs(whole)[0])
    assert features.unknown_ids == {"item": 1}


DROPPING = tables(unknown="drop")


@pytest.mark.parametrize(
    "candidates",
    [
        [1, 99, 2, 98],
        {"item": [1, 99, 2, 98], "distance": [9, 9, 9, 9]},
        [{"item": 1}, 99, {"item": 2, "distance": 9}, {"item": 98, "price": 1}],
    ],
    ids=["keys", "columns", "objects"],
)
def test_unknown_key_is_dropped_before_the_model_runs(candidates):
    sent = {"user": 7, "candidates": candidates}
    features = parse(sent, DROPPING).features
    assert features.rows == 2
    whole = parse({"user": 7, "candidates": [1, 2]}, tables())
    assert_same(inputs(parse(sent, DROPPING))[0], inputs(whole)[0])
    assert features.tables.kept.tolist() == [0, 2]
    assert features.tables.unknown["items"].tolist() == [1, 3]


@pytest.mark.parametrize("is_binary", [False, True], ids=["json", "binary"])
def test_v2_drops_unknown_keys_too(is_binary):
    sent = {"user": {"user_id": 7}, "candidates": {"item": [1, 99, 2], "distance": [4, 5, 6]}}
    parsed = infer(sent, DROPPING, is_binary=is_binary)
    assert parsed.features.candidate["distance"].ravel().tolist() == [4, 6]
    assert parsed.features.tables.kept.tolist() == [0, 2]


# The answer.


def answer(parsed: Any) -> Any:
    rows = parsed.features.rows
    scores = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
    _, body = parsed.writer.write(rank_alone(scores, parsed.ranking))
    return orjson.loads(body)


def test_answer_names_the_tables_and_ranks_the_keys():
    got = answer(parse({"user": 42, "candidates": [3, 1, 2]}, tables()))
    assert got["tables"] == {"items": "3.2", "users": "1"}
    assert got["ranking"] == [2, 1, 3]
    assert "unknown_keys" not in got
    keys = ["a", "b", "c"]
    got = answer(parse({"user": 42, "candidates": [3, 1, 2], "candidate_keys": keys}, tables()))
    assert got["ranking"] == ["c", "b", "a"]


def test_answer_to_a_request_without_tables_is_as_before():
    whole = {"user": USERS[7], "candidates": {"item": [1], "quality": [[1, 2]], "price": [3]}}
    with_tables = whole["candidates"] | {"distance": [9.0]}
    got = answer(parse(whole | {"candidates": with_tables}, tables()))
    assert got == answer(parse(whole, ModelTables()))
    assert "tables" not in got


def test_dropped_candidate_has_null_scores_and_no_rank():
    ranking = {"explain": True}
    got = answer(parse({"user": 7, "candidates": [1, 99, 2], "ranking": ranking}, DROPPING))
    assert got["scores"] == {"click": [0.0, None, 2.0], "dwell": [1.0, None, 3.0]}
    assert got["rank_score"][1] is None
    assert got["ranking"] == [2, 1]
    assert [candidate["candidate"] for candidate in got["explanation"]["candidates"]] == [2, 1]
    assert got["unknown_keys"] == {"items": {"count": 1, "positions": [1]}}
    got = answer(parse({"user": 7, "candidates": {"item": [1, 99, 2]}}, DROPPING))
    assert got["ranking"] == [2, 0]


def test_every_candidate_may_be_dropped():
    got = answer(parse({"user": 7, "candidates": [98, 99]}, DROPPING))
    assert got["ranking"] == []
    assert got["rank_score"] == [None, None]


def test_v2_answer_names_the_tables_and_the_unknown_positions():
    sent = {"user": {"user_id": 7}, "candidates": {"item": [1, 99, 2]}}
    got = answer(infer(sent, DROPPING, is_binary=False))
    assert got["parameters"] == {
        "role": "active",
        "items_table": "3.2",
        "users_table": "1",
        "unknown_items": "1",
    }
    (click, *_) = got["outputs"]
    assert click["shape"] == [3, 1]
    assert click["data"] == [0.0, None, 2.0]


def test_v2_answer_of_a_known_document_follows_the_tables():
    subject = OpenInference()
    made = [
        tensor.as_binary()
        for tensor in tensors({"user": {"user_id": 7}, "candidates": {"item": [1, 2]}}, FEED)
    ]
    outputs = [{"name": "click", "parameters": {"binary_data": True}}]
    head = orjson.dumps({"inputs": [tensor for tensor, _ in made], "outputs": outputs})
    body = head + b"".join(content for _, content in made)

    def ask(found: ModelTables) -> Any:
        headers = {HEADER_LENGTH: b"%d" % len(head)}
        parsed = subject.parse(body, context(found, headers=headers))
        _, content = parsed.writer.write(rank_alone(np.zeros((2, 2), np.float32), parsed.ranking))
        return orjson.loads(content[: content.index(b"}]}") + 3] if b"}]}" in content else content)

    first, again = ask(tables()), ask(tables())
    assert first == again
    newer = bound(
        FEED,
        memory_table(FEED, "items", "item", ITEMS, label="4"),
        memory_table(FEED, "users", "user_id", USERS),
    )
    assert ask(newer)["parameters"]["items_table"] == "4"


# Mistakes.


STRICT = manifest(
    inputs=(
        DenseInput(name="age", side="user"),
        DenseInput(name="hour", side="user"),
        IdInput(name="user_id", side="user", vocabulary_size=100, unknown="reject"),
        IdInput(name="item", side="candidate", vocabulary_size=10, unknown="reject"),
        DenseInput(name="price", side="candidate"),
        DenseInput(name="distance", side="candidate"),
    )
)
"""Its tables have neither `hour` nor `distance`."""


def strict(unknown: str = "error") -> ModelTables:
    items = {key: {"item": key, "price": key} for key in range(4)}
    users = {7: {"user_id": 7, "age": 1}}
    return bound(
        STRICT,
        memory_table(STRICT, "items", "item", items, unknown=unknown),
        memory_table(STRICT, "users", "user_id", users, unknown=unknown),
    )


RIGHT = {"user": {"user_id": 7, "hour": 1}, "candidates": {"item": [1], "distance": [2]}}
NO_USER = "the users table (version 1) has no such key"
WRONG: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "no user": (
        {"user": MISSING},
        [
            (
                "/user",
                "is required: a key of the users table, or an object of user features; "
                "the model needs: age, hour, user_id",
            )
        ],
    ),
    "nothing of the user": (
        {"user": {}},
        [
            (
                "/user",
                "required features are missing: age, user_id; "
                "send them, or user_id, the key of the users table",
            ),
            ("/user/hour", "required feature is missing"),
        ],
    ),
    "what the table lacks": ({"user": 7}, [("/user/hour", "required feature is missing")]),
    "a key that is no feature of the model's range": (
        {"user": {"user_id": 999, "hour": 1}},
        [("/user/user_id", NO_USER)],
    ),
    "keys that are unknown and outside the range": (
        {"candidates": {"item": [1, 99], "distance": [1, 2]}},
        [("/candidates/item", "1 of 2 keys are not in the items table (version 1): at position 1")],
    ),
    "neither a key nor an object": (
        {"user": None, "candidates": None},
        [
            (
                "/user",
                "must be a key of the users table, or an object of user features",
            ),
            (
                "/candidates",
                "must be a list of keys of the items table, an object of feature columns, "
                "or a list of candidate objects",
            ),
        ],
    ),
    "keys of another type": (
        {"candidates": [1, 1.5, True]},
        [
            ("/candidates/1", "must be an integer, a key of the items table"),
            ("/candidates/2", "must be an integer, a key of the items table"),
        ],
    ),
    "keys beyond 64 bits": (
        {"user": -(10**20), "candidates": [1, 10**20, 2**63]},
        [
            ("/user", "must fit in int64, a key of the users table"),
            ("/candidates/1", "must fit in int64, a key of the items table"),
            ("/candidates/2", "must fit in int64, a key of the items table"),
        ],
    ),
    "a key beyond 64 bits beside candidates": (
        {"candidates": [{"item": 1, "distance": 2}, 10**20]},
        [("/candidates/1/item", "must fit in int64, a key of the items table")],
    ),
    "keys that are unknown and equal": (
        {"candidates": [99, 99]},
        [
            (
                "/candidates",
                "2 of 2 keys are not in the items table (version 1): at positions 0, 1",
            ),
            ("/candidates/distance", "required feature is missing"),
        ],
    ),
    "known keys that are equal": (
        {"candidates": [99, 1, 1]},
        [
            ("/candidates", "1 of 3 keys are not in the items table (version 1): at position 0"),
            ("/candidates/distance", "required feature is missing"),
            ("/candidates/2", "duplicate key at position 2, first at position 1"),
        ],
    ),
    "a column of keys that is no list": (
        {"candidates": {"item": 1, "distance": [2]}},
        [("/candidates/item", "must be a list with one value per candidate")],
    ),
    "a column of keys that is too short": (
        {"candidates": {"distance": [2, 3], "item": [1]}},
        [("/candidates/item", "has 1 value, but /candidates/distance has 2")],
    ),
    "one candidate without its key": (
        {"candidates": [{"item": 1, "distance": 2}, {"distance": 2}]},
        [
            (
                "/candidates/1",
                "required features are missing: item, price; "
                "send them, or item, the key of the items table",
            )
        ],
    ),
    "one candidate without its key and what the table lacks": (
        {"candidates": [{"item": 1, "distance": 2}, {"price": 2}]},
        [
            ("/candidates/1/item", "required feature is missing"),
            ("/candidates/1/distance", "required feature is missing"),
        ],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_mistake_about_a_key_is_one_problem(case):
    changes, expected = WRONG[case]
    sent = {name: value for name, value in (RIGHT | changes).items() if value is not MISSING}
    with pytest.raises(InvalidRequest) as caught:
        Native().parse(json.dumps(sent).encode(), context(strict(), STRICT))
    assert [(problem.pointer, problem.detail) for problem in caught.value.problems] == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"user": {"user_id": 999, "hour": 1}}, [("/inputs/0", NO_USER)]),
        (
            {"candidates": {"item": [1, 99], "distance": [1, 2]}},
            [("/inputs/2", "1 of 2 keys are not in the items table (version 1): at position 1")],
        ),
        (
            {"user": {}, "candidates": {}},
            [
                (
                    "/inputs",
                    "required inputs are missing: item, price; "
                    "send them, or item, the key of the items table",
                ),
                (
                    "/inputs",
                    "required inputs are missing: age, user_id; "
                    "send them, or user_id, the key of the users table",
                ),
                ("/inputs", "required inputs are missing: distance, hour"),
            ],
        ),
        (
            {"candidates": {"price": [1], "distance": [1]}},
            [("/inputs", "required input item is missing")],
        ),
    ],
    ids=["unknown user", "unknown item", "no inputs", "no key"],
)
def test_v2_one_mistake_about_a_key_is_one_problem(changes, expected):
    made = [tensor.as_json() for tensor in tensors(RIGHT | changes, STRICT)]
    with pytest.raises(InvalidRequest) as caught:
        OpenInference().parse(orjson.dumps({"inputs": made}), context(strict(), STRICT))
    assert [(problem.pointer, problem.detail) for problem in caught.value.problems] == expected


def test_v2_user_rows_that_differ_are_one_problem():
    made = [tensor.as_json() for tensor in tensors(RIGHT, STRICT)]
    made[0] |= {"shape": [2], "data": [7, 8]}
    made[2:] = [
        made[2] | {"shape": [2], "data": [1, 2]},
        made[3] | {"shape": [2, 1], "data": [1, 2]},
    ]
    with pytest.raises(InvalidRequest) as caught:
        OpenInference().parse(orjson.dumps({"inputs": made}), context(strict(), STRICT))
    (problem,) = caught.value.problems
    assert problem.detail == "user_id is a user feature: send one row, or n equal rows"


def test_keys_without_a_table_are_refused_with_the_reason():
    found = problems({"user": 7, "candidates": [1, 2]}, ModelTables())
    assert [problem.pointer for problem in found] == ["/user", "/candidates"]
    assert "a key alone needs a table of users" in found[0].detail
    assert "to send keys only, the model needs a table of items" in found[1].detail


@pytest.mark.parametrize(
    ("candidates", "pointer"),
    [
        ([1, "2"], "/candidates/1"),
        ([1, True], "/candidates/1"),
        ([1, 2.5], "/candidates/1"),
        ([1, None], "/candidates/1"),
        ([1, 2**63], "/candidates/1"),
        ([[1], 1], "/candidates/0"),
        ({"item": [1, "2"]}, "/candidates/item/1"),
        ([{"item": 1}, {"item": "2"}], "/candidates/1/item"),
        ([{"item": 1}, {"itm": 2}], "/candidates/1/itm"),
        ([{"item": 1}, [2]], "/candidates/1"),
    ],
    ids=repr,
)
def test_wrong_key_is_named(candidates, pointer):
    assert pointer in [
        problem.pointer for problem in problems({"user": 7, "candidates": candidates})
    ]


def test_string_keys_must_be_strings():
    found = problems({"user": 7, "candidates": ["sku-1", 2]}, tables(keyed_by="sku"))
    assert found == [FieldError("/candidates/1", "must be a string, a key of the items table")]


def test_duplicate_keys_are_refused_unless_the_candidates_have_other_names():
    (problem,) = problems({"user": 7, "candidates": [1, 2, 1]})
    assert problem.pointer == "/candidates/2"
    sent = {"user": 7, "candidates": [1, 2, 1], "candidate_keys": ["a", "b", "c"]}
    assert parse(sent, tables()).features.rows == 3


def test_missing_feature_names_the_key_that_would_bring_it():
    (problem,) = problems({"user": 7, "candidates": {"distance": [1]}}, tables(keyed_by="sku"))
    assert problem.pointer == "/candidates/item"
    assert problem.detail.endswith("send it, or sku, the key of the items table")


def test_feature_that_the_table_lacks_must_be_sent():
    lacking = {key: {"item": key} for key in ITEMS}
    strict = manifest(inputs=(*FEED.inputs[:4], DenseInput(name="price", side="candidate")))
    found = bound(strict, memory_table(strict, "items", "item", lacking))
    user = {"age": 1, "user_id": 1}
    with pytest.raises(InvalidRequest) as caught:
        Native().parse(orjson.dumps({"user": user, "candidates": [1, 2]}), context(found, strict))
    (problem,) = caught.value.problems
    assert problem.pointer == "/candidates/price"


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.sampled_from([1, 7, 99])
)
nonsense = st.recursive(
    scalars | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from([*NAMES, "sku", "user_id", "age", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@pytest.mark.no_cover
@pytest.mark.parametrize("keyed_by", ["item", "sku"])
@pytest.mark.parametrize("unknown", ["error", "default", "drop"])
@given(user=nonsense, candidates=nonsense)
def test_any_document_is_read_or_refused(keyed_by, unknown, user, candidates):
    found = context(tables(keyed_by=keyed_by, unknown=unknown))
    document = {"user": user, "candidates": candidates}
    try:
        features, _, _ = read_request(document, found)
        assert features.rows >= 0
    except InvalidRequest as error:
        places = [problem.pointer for problem in error.problems]
        assert len(set(places)) == len(places)  # nothing is wrong twice


def test_too_many_keys_are_refused():
    with pytest.raises(PayloadTooLarge):
        parse({"user": 7, "candidates": list(range(101))}, tables())


def test_no_candidates_are_no_problem():
    forms: tuple[Any, ...] = ([], {"item": []})
    for candidates in forms:
        assert parse({"user": 7, "candidates": candidates}, tables()).features.rows == 0


def test_v2_names_the_key_when_an_input_is_missing():
    with pytest.raises(InvalidRequest) as caught:
        infer({"user": {"user_id": 7}, "candidates": {"price": [1]}}, tables(), is_binary=False)
    (problem,) = caught.value.problems
    assert problem.detail == "required input item is missing"


def test_routing_key_of_the_short_form_is_the_user():
    routed = {"key_feature": "user_id"}
    assert parse({"user": 42, "candidates": [1]}, tables(), **routed).routing_key == 42
    assert parse({"user": {"user_id": 42}, "candidates": [1]}, tables(), **routed).routing_key == 42
    by_v2 = infer(
        {"user": {"user_id": 42}, "candidates": {"item": [1]}}, tables(), is_binary=True, **routed
    )
    assert by_v2.routing_key == 42


def test_routing_key_may_come_from_the_table():
    users = memory_table(FEED, "users", "login", {"ann": USERS[42]})
    found = bound(FEED, None, users)
    items = {"item": [1], "quality": [[1, 2]]}
    sent = {"user": "ann", "candidates": items}
    assert parse(sent, found, key_feature="user_id").routing_key == 42


def test_memory_table_fits_its_own_rows():
    subject = memory_table(FEED, "items", "item", ITEMS)
    assert isinstance(subject, MemoryTable)
    assert subject.find(np.array([1, 99])).tolist() == [1, -1]


def test_v2_tensors_of_different_lengths_are_refused():
    sent = {"user": {"user_id": 7}, "candidates": {"item": [1, 2, 3], "distance": [1, 2]}}
    with pytest.raises(InvalidRequest) as caught:
        infer(sent, tables(), is_binary=True)
    assert "distance has 2 rows, but item has 3" in str(caught.value)


def test_v2_user_key_may_have_a_row_for_each_candidate_or_none():
    made = [Sent("item", "INT64", (2,), [1, 2]), Sent("user_id", "INT64", (2,), [7, 7])]

    def parsed(*inputs: Sent) -> Any:
        body = orjson.dumps({"inputs": [tensor.as_json() for tensor in inputs]})
        return OpenInference().parse(body, context(tables(), key_feature="user_id"))

    single = {"user": {"user_id": 7}, "candidates": {"item": [1, 2]}}
    one = infer(single, tables(), is_binary=False)
    assert_same(inputs(parsed(*made))[0], inputs(one)[0])
    nobody = parsed(Sent("item", "INT64", (0,), []), Sent("user_id", "INT64", (0,), []))
    assert (nobody.features.rows, nobody.routing_key) == (0, None)
    with pytest.raises(InvalidRequest, match="user_id is a user feature"):
        parsed(made[0], Sent("user_id", "INT64", (2,), [7, 42]))
