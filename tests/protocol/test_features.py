"""The encoder: features become columns, and wrong values are reported at their place."""

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from app.artifacts.encoding import Hashed, Listed, Vocabularies
from app.artifacts.inputs import DenseInput, IdInput, IdListInput, Input
from app.engine.request import RequestFeatures
from app.errors import FieldError, InvalidRequest, PayloadTooLarge
from app.protocol.features import column_by_value, encode
from app.protocol.validation import MOST_PROBLEMS, Side, ValidationReport
from tests.support.builders import manifest
from tests.support.documents import (
    NUMBER,
    TEXT,
    Case,
    cases,
    damaged,
    expected,
    resolve,
    sent,
)

NONE: Vocabularies = {}
AGE = DenseInput(name="age", side="user", default=(30.0,))
ITEM = IdInput(name="item", side="candidate", vocabulary_size=10, unknown=7)
QUALITY = DenseInput(name="quality", side="candidate", dim=2)
TAGS = IdListInput(name="tags", side="candidate", vocabulary_size=10, max_length=2, default=(1,))


def encoded(
    inputs: tuple[Input, ...],
    candidates: object,
    user: object = None,
    *,
    most: int = 1000,
    vocabularies: Vocabularies = NONE,
) -> RequestFeatures:
    report = ValidationReport()
    request = encode(
        manifest(inputs=inputs),
        user or {},
        candidates,
        report,
        max_candidates=most,
        vocabularies=vocabularies,
    )
    report.raise_any()
    return request


def problems(
    inputs: tuple[Input, ...],
    candidates: object,
    user: object = None,
    vocabularies: Vocabularies = NONE,
) -> list[FieldError]:
    with pytest.raises(InvalidRequest) as caught:
        encoded(inputs, candidates, user, vocabularies=vocabularies)
    return caught.value.problems


def pointers(inputs: tuple[Input, ...], candidates: object, user: object = None) -> list[str]:
    return [problem.pointer for problem in problems(inputs, candidates, user)]


def encoded_case(case: Case) -> RequestFeatures:
    return encoded(case.manifest.inputs, case.candidates, case.user, vocabularies=case.vocabularies)


def columns_of(request: RequestFeatures) -> dict[str, Any]:
    return {**request.user, **request.candidate}


@given(cases())
def test_valid_features_are_encoded_as_by_a_plain_loop(case: Case):
    request = encoded_case(case)
    assert request.rows == case.rows
    unknown_ids = {}
    for feature in case.manifest.inputs:
        column, unknown = expected(case, feature)
        found = columns_of(request)[feature.name]
        np.testing.assert_array_equal(found, column, strict=True)
        if unknown:
            unknown_ids[feature.name] = unknown
    assert request.unknown_ids == unknown_ids


@pytest.mark.no_cover
@given(cases())
def test_value_by_value_encoder_equals_the_fast_one(case: Case):
    request = encoded_case(case)
    report = ValidationReport()
    for feature in case.manifest.inputs:
        values = sent(case, feature)
        vocabulary = case.vocabularies.get(feature.name, {})
        slow = column_by_value(
            feature, values, Side({}, len(values), "columns"), report, vocabulary
        )
        np.testing.assert_array_equal(slow, columns_of(request)[feature.name], strict=True)
    assert report.problems == []
    assert report.unknown_ids == request.unknown_ids


@given(damaged())
def test_every_wrong_value_is_reported_at_its_place_and_not_echoed(case_and_damages):
    case, damages = case_and_damages
    found = problems(case.manifest.inputs, case.candidates, case.user, case.vocabularies)
    assert {problem.pointer for problem in found} == {damage.pointer for damage in damages}
    document = {"user": case.user, "candidates": case.candidates}
    for damage in damages:
        assert resolve(document, damage.pointer) is damage.value
    for problem in found:
        assert TEXT not in problem.detail
        assert str(NUMBER) not in problem.detail


@pytest.mark.no_cover
@given(damaged())
def test_value_by_value_encoder_accepts_no_more_than_the_fast_one(case_and_damages):
    case, damages = case_and_damages
    report = ValidationReport()
    for feature in case.manifest.inputs:
        values = sent(case, feature)
        vocabulary = case.vocabularies.get(feature.name, {})
        column_by_value(feature, values, Side({}, len(values), "columns"), report, vocabulary)
    assert len(report.problems) == len(damages)


def test_columns_and_objects_give_equal_features():
    columns = {"item": [1, 2], "quality": [[0.5, 1], [2, 3.25]], "tags": [[], [3, 4]]}
    objects = [
        {"item": 1, "quality": [0.5, 1], "tags": []},
        {"item": 2, "quality": [2, 3.25], "tags": [3, 4]},
    ]
    one, other = (encoded((ITEM, QUALITY, TAGS), candidates) for candidates in (columns, objects))
    for name, column in one.candidate.items():
        np.testing.assert_array_equal(column, other.candidate[name], strict=True)


def test_boolean_counts_as_0_or_1_in_a_dense_feature():
    request = encoded((QUALITY,), {"quality": [[True, False]]})
    np.testing.assert_array_equal(request.candidate["quality"], [[1.0, 0.0]])


def test_column_of_width_1_may_mix_numbers_and_lists():
    price = DenseInput(name="price", side="candidate")
    for mixed in ([1, [2.5]], [[1], 2.5]):
        request = encoded((price,), {"price": mixed})
        np.testing.assert_array_equal(request.candidate["price"], [[1.0], [2.5]])


def test_largest_float32_is_accepted_as_its_shortest_text():
    price = DenseInput(name="price", side="candidate")
    largest = 3.4028235e38  # above the largest float32, but rounds to it
    request = encoded((price,), {"price": [largest]})
    assert request.candidate["price"][0, 0] == np.finfo(np.float32).max
    assert pointers((price,), {"price": [largest, None, 3.4028236e38]}) == [
        "/candidates/price/1",
        "/candidates/price/2",
    ]


def test_unknown_ids_become_the_unknown_row_and_are_counted():
    tags = IdListInput(
        name="tags", side="candidate", vocabulary_size=10, max_length=3, unknown=2, padding=-1
    )
    request = encoded(
        (ITEM, tags), {"item": [9, 10, -1, 2**63 - 1], "tags": [[-1, 11], [], [9], [10]]}
    )
    np.testing.assert_array_equal(request.candidate["item"], [9, 7, 7, 7])
    np.testing.assert_array_equal(
        request.candidate["tags"], [[2, 2, -1], [-1, -1, -1], [9, -1, -1], [2, -1, -1]]
    )
    assert request.unknown_ids == {"item": 3, "tags": 3}


def test_unknown_ids_are_refused_if_the_manifest_rejects_them():
    strict = IdInput(name="item", side="candidate", vocabulary_size=10, unknown="reject")
    assert pointers((strict,), {"item": [9, 10, 0, -1]}) == [
        "/candidates/item/1",
        "/candidates/item/3",
    ]


BRAND = IdInput(
    name="brand",
    side="candidate",
    vocabulary_size=3,
    unknown=0,
    encoding=Listed(file="vocabulary.brand.jsonl"),
)
CLIP = IdInput(name="clip", side="candidate", vocabulary_size=9, encoding=Hashed(buckets=8))


def test_strings_become_rows_and_unknown_ones_are_counted():
    listed: Vocabularies = {"brand": {"acme": 1, "zeta": 2}}
    request = encoded(
        (BRAND, CLIP),
        {"brand": ["zeta", "acme", "", "Acme"], "clip": ["x", "x", "", "é"]},
        vocabularies=listed,
    )
    assert request.candidate["brand"].tolist() == [2, 1, 0, 0]
    clip = request.candidate["clip"].tolist()
    assert clip[0] == clip[1] > 0
    assert clip[2] == 0
    assert request.unknown_ids == {"brand": 2, "clip": 1}


def test_id_of_a_wrong_type_is_reported_with_the_expected_type():
    wide = CLIP.model_copy(update={"encoding": Hashed(ids="int64", buckets=8)})
    sent = {"brand": ["a", 7, None], "clip": ["a", "b", True]}
    assert problems((BRAND, CLIP), sent) == [
        FieldError("/candidates/brand/1", "must be a string"),
        FieldError("/candidates/brand/2", "must be a string"),
        FieldError("/candidates/clip/2", "must be a string"),
    ]
    huge = float(10**20)  # what orjson makes of 99999999999999999999
    assert problems((wide,), {"clip": [2**63 - 1, 2**63, "7", huge, 1.5, math.inf]}) == [
        FieldError("/candidates/clip/1", "must fit in int64"),
        FieldError("/candidates/clip/2", "must be an integer"),
        FieldError("/candidates/clip/3", "must fit in int64"),
        FieldError("/candidates/clip/4", "must be an integer"),
        FieldError("/candidates/clip/5", "must be an integer"),
    ]


def test_string_with_a_lone_surrogate_is_refused():
    assert problems((CLIP,), {"clip": ["a", "\ud800"]}) == [
        FieldError("/candidates/clip/1", "must be valid Unicode")
    ]


def test_unlisted_string_is_refused_if_the_manifest_rejects_it():
    strict = BRAND.model_copy(update={"unknown": "reject"})
    assert problems((strict,), {"brand": ["a", "b"]}, None, {"brand": {"a": 1}}) == [
        FieldError("/candidates/brand/1", "must be an id of the feature's vocabulary")
    ]


def test_lists_are_padded_on_the_side_of_the_manifest():
    left = IdListInput(
        name="left", side="user", vocabulary_size=10, max_length=3, padding=0, padding_side="left"
    )
    right = IdListInput(name="right", side="user", vocabulary_size=10, max_length=3, padding=-5)
    request = encoded((left, right, ITEM), [], {"left": [4], "right": [4]})
    np.testing.assert_array_equal(request.user["left"], [[0, 0, 4]])
    np.testing.assert_array_equal(request.user["right"], [[4, -5, -5]])


@pytest.mark.parametrize(
    ("padding", "size", "accepted"),
    [
        (0, 500, "between 1 and 499"),
        (9, 10, "between 0 and 8"),
        (7, 9, "between 0 and 8 other than 7"),
    ],
)
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_padding_of_a_measured_list_is_no_id(padding, size, accepted, padding_side):
    plain = IdListInput(
        name="history",
        side="candidate",
        vocabulary_size=size,
        max_length=3,
        unknown="reject",
        padding=padding,
        padding_side=padding_side,
    )
    rule = f"must be an id {accepted}: {padding} is the padding of this feature"
    lists = [[3, padding, 4], [3], [3, padding], [padding, 4], []]
    for candidates in ({"history": lists}, [{"history": ids} for ids in lists]):
        details = [problem.detail for problem in problems((plain.measured(),), candidates)]
        assert details == [rule] * 3
        column = encoded((plain,), candidates).candidate["history"]
        assert (padding, padding, padding) == tuple(column[4])
    start = "/candidates/history"
    assert [problem.pointer for problem in problems((plain.measured(),), {"history": lists})] == [
        f"{start}/0/1",
        f"{start}/2/1",
        f"{start}/3/0",
    ]
    right = [ids for ids in lists if padding not in ids]
    np.testing.assert_array_equal(
        encoded((plain.measured(),), {"history": right}).candidate["history"],
        encoded((plain,), {"history": right}).candidate["history"],
    )
    outside = problems((plain.measured(),), {"history": [[size]]})
    assert [problem.detail for problem in outside] == [f"must be an id {accepted}"]


def test_ids_that_become_the_padding_of_a_measured_list_are_refused():
    words = IdListInput(
        name="words",
        side="user",
        vocabulary_size=5,
        max_length=2,
        padding=2,
        encoding=Listed(file="vocabulary.words.jsonl"),
    ).measured()
    known: Vocabularies = {"words": {"a": 1, "b": 2}}
    found = problems((words, ITEM), {"item": [1]}, {"words": ["a", "b"]}, known)
    rule = "must be an id with another row than 2: 2 is the padding of this feature"
    assert found == [FieldError("/user/words/1", rule)]
    request = encoded((words, ITEM), {"item": [1]}, {"words": ["z", "a"]}, vocabularies=known)
    assert request.user["words"].tolist() == [[0, 1]]
    lost = words.model_copy(update={"padding": 0})
    found = problems((lost, ITEM), {"item": [1]}, {"words": ["a", "z"]}, known)
    rule = "must be a known id: unknown ids are row 0, and 0 is the padding of this feature"
    assert found == [FieldError("/user/words/1", rule)]


def test_padding_outside_the_vocabulary_reserves_nothing():
    tags = IdListInput(name="tags", side="user", vocabulary_size=10, max_length=3, unknown=2)
    request = encoded((tags.measured(), ITEM), {"item": [1]}, {"tags": [3, -1]})
    assert request.user["tags"].tolist() == [[3, 2, -1]]


@pytest.mark.parametrize("none", [[], {"item": [], "quality": []}], ids=["objects", "columns"])
def test_zero_candidates_give_empty_columns(none):
    request = encoded((AGE, ITEM, QUALITY, TAGS), none)
    assert request.rows == 0
    assert {name: column.shape for name, column in request.candidate.items()} == {
        "item": (0,),
        "quality": (0, 2),
        "tags": (0, 2),
    }
    assert request.user["age"].tolist() == [[30.0]]


def test_defaults_replace_missing_columns_and_missing_values():
    whole = encoded((ITEM, TAGS), {"item": [1, 2]})
    single = encoded((ITEM, TAGS), [{"item": 1, "tags": [5, 6]}, {"item": 2}])
    np.testing.assert_array_equal(whole.candidate["tags"], [[1, -1], [1, -1]])
    np.testing.assert_array_equal(single.candidate["tags"], [[5, 6], [1, -1]])


def test_columns_are_writable_and_not_shared():
    first, second = (encoded((QUALITY,), {"quality": [[1, 2]]}) for _ in range(2))
    first.candidate["quality"][0, 0] = 9
    assert second.candidate["quality"][0, 0] == 1


def test_missing_required_feature_is_reported():
    assert pointers((AGE, ITEM, QUALITY), {"item": [1]}) == ["/candidates/quality"]
    assert pointers((AGE, ITEM), [{"item": 1}, {}]) == ["/candidates/1/item"]
    user = DenseInput(name="height", side="user")
    assert pointers((user, ITEM), {"item": [1]}) == ["/user/height"]


def test_unknown_feature_is_reported_at_its_place():
    found = pointers((AGE, ITEM), [{"item": 1}, {"item": 2, "it/em~": 3}], {"age": 3, "item": 4})
    assert set(found) == {"/candidates/1/it~1em~0", "/user/item"}
    assert pointers((ITEM,), {"item": [1], "colour": [2]}) == ["/candidates/colour"]


def test_columns_of_different_lengths_are_reported():
    found = problems((ITEM, QUALITY, TAGS), {"item": [1, 2], "quality": [[1, 2]], "tags": [[]]})
    assert [problem.pointer for problem in found] == ["/candidates/quality", "/candidates/tags"]
    assert found[0].detail == "has 1 value, but /candidates/item has 2"


@pytest.mark.parametrize("column", [None, 1, TEXT, {"0": 1}, True], ids=str)
def test_column_that_is_not_a_list_is_refused(column):
    assert pointers((ITEM, QUALITY), {"item": column, "quality": [[1, 2]]}) == ["/candidates/item"]


@pytest.mark.parametrize("candidates", [None, 1, TEXT, True], ids=str)
def test_candidates_of_a_wrong_type_are_one_problem(candidates):
    assert pointers((ITEM, QUALITY), candidates) == ["/candidates"]


@pytest.mark.parametrize("user", [[1], 1, TEXT, True], ids=str)
def test_user_that_is_not_an_object_is_one_problem(user):
    height = DenseInput(name="height", side="user")
    assert pointers((height, ITEM), {"item": [1]}, user) == ["/user"]


@pytest.mark.parametrize("candidate", [None, 1, TEXT, [1]], ids=str)
def test_candidate_that_is_not_an_object_is_reported_at_its_row(candidate):
    assert pointers((TAGS,), [{}, candidate]) == ["/candidates/1"]


def test_all_problems_of_a_request_are_reported_together():
    found = pointers(
        (AGE, ITEM, QUALITY, TAGS),
        {"item": [1, "2", 3], "quality": [[1, None], [1], [1, 2]], "tags": [[1], [1], [1, 2, 3]]},
        {"age": "30", "name": "x"},
    )
    assert found == [
        "/user/name",
        "/user/age",
        "/candidates/item/1",
        "/candidates/quality/0/1",
        "/candidates/quality/1",
        "/candidates/tags/2",
    ]


def test_report_lists_at_most_20_problems():
    assert len(problems((ITEM,), {"item": [TEXT] * 500})) == MOST_PROBLEMS == 20


def test_too_many_candidates_are_refused_in_both_forms():
    for candidates in ({"item": [1, 2, 3]}, [{"item": 1}] * 3):
        assert encoded((ITEM,), candidates, most=3).rows == 3
        with pytest.raises(PayloadTooLarge):
            encoded((ITEM,), candidates, most=2)


HUGE = 1 << 22


@pytest.mark.parametrize(
    ("inputs", "candidates"),
    [
        ((QUALITY,), {"quality": ["\N{SNOWMAN}" * HUGE]}),
        ((DenseInput(name="price", side="candidate"),), {"price": ["x" * HUGE]}),
        ((ITEM,), {"item": ["x" * HUGE]}),
        ((TAGS,), {"tags": ["x" * HUGE]}),
        ((ITEM,), {"item": "x" * HUGE}),
        ((ITEM,), {"x" * HUGE: [1], "item": [1]}),
        ((ITEM,), [{f"name-{row}-{i}": 0 for i in range(50)} for row in range(1000)]),
    ],
    ids=["dense", "number", "id", "id list", "column", "name", "names"],
)
def test_huge_wrong_value_takes_little_memory(inputs, candidates):
    report = ValidationReport()
    encode(manifest(inputs=inputs), {}, candidates, report, max_candidates=1000)  # warm caches
    report = ValidationReport()
    tracemalloc.start()
    try:
        encode(manifest(inputs=inputs), {}, candidates, report, max_candidates=1000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert report.problems
    assert sum(len(problem.pointer) + len(problem.detail) for problem in report.problems) < 10_000
    assert peak < HUGE // 4
