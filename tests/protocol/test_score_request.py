"""Score requests: every member is checked, and every problem is reported at once."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, strategies as st

from app.api.openapi.score_schemas import Ranking, ScoreRequest as Schema
from app.artifacts.manifest import Manifest
from app.engine.request import RequestFeatures
from app.errors import FieldError, InvalidRequest, PayloadTooLarge
from app.protocol.dialect import ParseContext
from app.protocol.native import Keys, read_request
from app.protocol.validation import MOST_PROBLEMS
from app.ranking.policy import LARGEST_WEIGHT, Policy
from app.ranking.ranker import RankingOptions
from tests.support.builders import description, manifest, own_policies
from tests.support.documents import NUMBER, TEXT
from tests.support.fakes import sums_model

FEED = manifest(
    ranking=Policy(name="feed", formula="power_product", weights={"click": 1.0, "dwell": 0.5})
)


def context(of: Manifest = FEED, *, max_candidates: int = 100) -> ParseContext:
    """A model without a program: reading a request needs none."""
    model = replace(sums_model(), manifest=of)
    return ParseContext(model, own_policies(of), {}, max_candidates)


def document(**changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "user": {"age": 3, "recent": [4, 7]},
        "candidates": {"item": [1, 2, 3], "quality": [[0, 1], [1, 1], [2, 1]]},
    }
    return whole | changes


class Read(NamedTuple):
    """What is read from a document."""

    features: RequestFeatures
    ranking: RankingOptions
    keys: Keys | None


def read(**changes: Any) -> Read:
    return Read(*read_request(document(**changes), context()))


def problems(sent: object) -> list[FieldError]:
    with pytest.raises(InvalidRequest) as caught:
        read_request(sent, context())
    return caught.value.problems


def pointers(**changes: Any) -> list[str]:
    return [problem.pointer for problem in problems(document(**changes))]


def test_request_with_features_only_uses_the_default_policy_and_positions():
    request = read()
    assert request.ranking.ranker.policy == FEED.ranking
    assert request.keys is None
    assert request.ranking.top_k is None
    assert request.features.rows == 3
    np.testing.assert_array_equal(request.features.user["recent"], [[4, 7, -1]])
    np.testing.assert_array_equal(request.features.candidate["item"], [1, 2, 3])


@pytest.mark.parametrize("sent", [None, [], 1, TEXT, True], ids=str)
def test_document_that_is_not_an_object_is_refused(sent):
    assert problems(sent) == [FieldError("", "the body must be an object")]


def test_unknown_member_is_reported_with_a_suggestion():
    (problem,) = problems(document(candidate=[]))
    assert problem.pointer == "/candidate"
    assert problem.detail == (
        'unknown key "candidate"; did you mean "candidates"? '
        "(known: candidate_keys, candidates, ranking, user)"
    )


def test_missing_candidates_are_not_empty_candidates():
    without = document()
    del without["candidates"]
    assert [problem.pointer for problem in problems(without)] == ["/candidates"]
    without = document()
    del without["user"]
    assert [problem.pointer for problem in problems(without)] == ["/user"]


def test_null_ranking_and_keys_are_as_if_absent():
    request = read(ranking=None, candidate_keys=None)
    assert (request.ranking.ranker.policy, request.keys) == (FEED.ranking, None)


def test_keys_are_strings_or_integers_and_kept_as_they_are():
    assert read(candidate_keys=["v1", 2, ""]).keys == ["v1", 2, ""]


@pytest.mark.parametrize("keys", [["a"], ["a", "b", "c", "d"], []], ids=len)
def test_wrong_number_of_keys_is_refused(keys):
    (problem,) = problems(document(candidate_keys=keys))
    assert problem == FieldError("/candidate_keys", f"has {len(keys)} keys for 3 candidates")


@pytest.mark.parametrize(
    ("keys", "place", "first"),
    [
        (["a", "b", "a"], 2, 0),
        ([1, 1, 2], 1, 0),
        (["1", 1, 1], 2, 1),
        (["", "é", "é"], 2, 1),
    ],
    ids=str,
)
def test_duplicate_key_is_refused_at_its_place(keys, place, first):
    (problem,) = problems(document(candidate_keys=keys))
    assert problem.pointer == f"/candidate_keys/{place}"
    assert problem.detail == f"duplicate key at position {place}, first at position {first}"


def test_every_duplicate_key_is_reported():
    assert pointers(candidate_keys=["a", "a", "a"]) == ["/candidate_keys/1", "/candidate_keys/2"]


def test_string_and_integer_are_different_keys():
    assert read(candidate_keys=["1", 1, 2]).keys == ["1", 1, 2]


@pytest.mark.parametrize("keys", [TEXT, 3, {"0": "a"}, True], ids=str)
def test_keys_that_are_not_a_list_are_refused(keys):
    assert pointers(candidate_keys=keys) == ["/candidate_keys"]


@pytest.mark.parametrize("key", [None, True, 1.5, ["a"], {"a": 1}], ids=str)
def test_key_of_a_wrong_type_is_reported_at_its_place(key):
    assert pointers(candidate_keys=["a", key, "c"]) == ["/candidate_keys/1"]


@pytest.mark.parametrize(
    ("keys", "pointer", "detail"),
    [
        (["a", "b", "a"], "/candidate_keys/2", "duplicate key at position 2, first at position 0"),
        ([7, 7, "7"], "/candidate_keys/1", "duplicate key at position 1, first at position 0"),
        (
            ["a", "x" * 257, "b"],
            "/candidate_keys/1",
            "must have at most 256 characters, has 257",
        ),
        ([1, 1e20, 2], "/candidate_keys/1", "must be a string, or an integer of 64 bits"),
        ([1, "x" * 300, 2], "/candidate_keys/1", "must have at most 256 characters, has 300"),
    ],
)
def test_duplicate_and_long_keys_are_reported_by_position(keys, pointer, detail):
    assert problems(document(candidate_keys=keys)) == [FieldError(pointer, detail)]


def test_different_keys_up_to_256_characters_are_accepted():
    for keys in (["1", 1, "x" * 256], ["é" * 256, "é" * 255, ""], [0, -1, 2**63 - 1]):
        assert read(candidate_keys=keys).keys == keys


def test_every_duplicate_key_is_reported_up_to_the_limit():
    candidates = {"item": [1] * 50, "quality": [[0, 1]] * 50}
    found = pointers(candidates=candidates, candidate_keys=["same"] * 50)
    assert found == [f"/candidate_keys/{position}" for position in range(1, MOST_PROBLEMS + 1)]


def test_keys_are_not_counted_if_the_candidates_are_wrong():
    candidates = {"item": [1, 2], "quality": [[0, 1]]}
    assert pointers(candidates=candidates, candidate_keys=["a"]) == ["/candidates/quality"]


def test_request_without_candidates_is_valid():
    request = read(candidates=[], candidate_keys=[])
    assert request.features.rows == 0
    assert request.keys == []


@pytest.mark.parametrize("ranking", [[], 1, TEXT, False], ids=str)
def test_ranking_that_is_not_an_object_is_refused(ranking):
    assert pointers(ranking=ranking) == ["/ranking"]


def test_unknown_ranking_options_are_reported():
    assert pointers(ranking={"top_n": 3, "weight": {}}) == ["/ranking/top_n", "/ranking/weight"]


@pytest.mark.parametrize("top_k", [1, 2, 10**6])
def test_top_k_is_an_integer(top_k):
    assert read(ranking={"top_k": top_k}).ranking.top_k == top_k


@pytest.mark.parametrize("top_k", [0, -1, 1.0, True, TEXT, [1]], ids=str)
def test_top_k_that_is_not_a_positive_integer_is_refused(top_k):
    assert pointers(ranking={"top_k": top_k}) == ["/ranking/top_k"]


@pytest.mark.parametrize("explain", [None, False, True])
def test_explain_is_read(explain):
    assert read(ranking={"explain": explain}).ranking.explain is (explain is True)


@pytest.mark.parametrize("explain", [0, 1, TEXT, [True]], ids=str)
def test_explain_that_is_not_a_boolean_is_refused(explain):
    assert pointers(ranking={"explain": explain}) == ["/ranking/explain"]


def test_policy_of_the_model_is_picked_by_name():
    assert read(ranking={"policy": "feed"}).ranking.ranker.policy == FEED.ranking
    assert read(ranking={"policy": None}).ranking.ranker.policy == FEED.ranking


@pytest.mark.parametrize("policy", [TEXT, 1, ["feed"], {}, True], ids=str)
def test_unknown_policy_is_refused(policy):
    (problem,) = problems(document(ranking={"policy": policy}))
    assert problem.pointer == "/ranking/policy"
    if policy == TEXT:
        assert problem.detail == "unknown policy (known: feed)"
    else:
        assert problem.detail == "must be a string, the name of a policy"


def test_misspelt_policy_is_reported_with_a_suggestion_and_not_echoed():
    (problem,) = problems(document(ranking={"policy": "feeed"}))
    assert problem.detail == 'unknown policy; did you mean "feed"? (known: feed)'


def test_weights_replace_those_of_the_policy_and_keep_the_others():
    policy = read(ranking={"weights": {"dwell": -2}}).ranking.ranker.policy
    assert policy.weights == {"click": 1.0, "dwell": -2}
    assert (policy.name, policy.formula) == ("feed", "power_product")
    assert FEED.ranking.weights == {"click": 1.0, "dwell": 0.5}


def test_task_without_weight_in_the_policy_may_get_one():
    narrow = manifest(ranking=Policy(weights={"click": 1.0}))
    sent = document(ranking={"weights": {"dwell": 3.0}})
    _, ranking, _ = read_request(sent, context(narrow))
    policy = ranking.ranker.policy
    assert policy.weights == {"click": 1.0, "dwell": 3.0}


@pytest.mark.parametrize("weight", [LARGEST_WEIGHT, -LARGEST_WEIGHT, 0, 0.5])
def test_weight_within_its_bounds_is_accepted(weight):
    policy = read(ranking={"weights": {"click": weight}}).ranking.ranker.policy
    assert policy.weights["click"] == weight


@pytest.mark.parametrize(
    "weight",
    [LARGEST_WEIGHT * 1.001, -1e9, 10**400, float("nan"), float("inf"), True, None, TEXT, [1]],
    ids=lambda weight: str(weight)[:20],
)
def test_weight_outside_its_bounds_is_refused(weight):
    (problem,) = problems(document(ranking={"weights": {"click": weight}}))
    assert problem.pointer == "/ranking/weights/click"
    assert problem.detail == "must be a number between -1e+06 and 1e+06"


def test_weights_are_not_applied_if_the_report_is_full():
    candidates = [[TEXT]] * MOST_PROBLEMS
    found = pointers(candidates=candidates, ranking={"weights": {"click": [1]}})
    assert found == [f"/candidates/{row}" for row in range(MOST_PROBLEMS)]


def test_weight_of_an_unknown_task_is_refused():
    (problem,) = problems(document(ranking={"weights": {"clik": 1.0}}))
    assert problem.pointer == "/ranking/weights/clik"
    assert problem.detail == (
        'policy feed has no weight "clik"; did you mean "click"? (adjustable: click, dwell)'
    )


@pytest.mark.parametrize("weights", [[], 1, TEXT], ids=str)
def test_weights_that_are_not_an_object_are_refused(weights):
    assert pointers(ranking={"weights": weights}) == ["/ranking/weights"]


def test_all_problems_are_reported_and_no_value_is_echoed():
    found = problems(
        document(
            extra=TEXT,
            user={"age": TEXT},
            candidates={"item": [1, NUMBER + 0.5], "quality": [[1, 2], [TEXT, 2]]},
            candidate_keys=[1.5, {TEXT: TEXT}],
            ranking={"policy": TEXT, "weights": {"click": TEXT}, "top_k": -NUMBER},
        )
    )
    assert {problem.pointer for problem in found} == {
        "/extra",
        "/user/age",
        "/candidates/item/1",
        "/candidates/quality/1/0",
        "/candidate_keys/0",
        "/candidate_keys/1",
        "/ranking/policy",
        "/ranking/weights/click",
        "/ranking/top_k",
    }
    for problem in found:
        assert TEXT not in problem.detail
        assert str(NUMBER) not in problem.detail


def test_message_has_the_first_problem_and_the_number_of_others():
    with pytest.raises(InvalidRequest) as caught:
        read(ranking={"top_k": 0, "policy": "other"})
    assert str(caught.value) == ("/ranking/policy: unknown policy (known: feed) (and 1 more)")


def test_too_many_candidates_are_a_payload_too_large():
    with pytest.raises(PayloadTooLarge, match="too many candidates: 3, limit 2"):
        read_request(document(), context(max_candidates=2))


def test_long_names_are_cut_in_pointers_and_messages():
    (problem,) = problems(document(**{"x" * 1000: 1}))
    assert problem.pointer == f"/{'x' * 64}…"
    assert f'unknown key "{"x" * 64}…" (known' in problem.detail


KEYS = st.text(max_size=256) | st.integers(-(2**63), 2**63 - 1)
MEMBERS = st.fixed_dictionaries(
    {},
    optional={
        "candidate_keys": st.none() | st.lists(KEYS, min_size=3, max_size=3, unique=True),
        "ranking": st.none()
        | st.fixed_dictionaries(
            {},
            optional={
                "policy": st.none() | st.just("feed"),
                "weights": st.none()
                | st.dictionaries(st.sampled_from(("click", "dwell")), st.floats(-9, 9)),
                "top_k": st.none() | st.integers(1, 9),
                "explain": st.none() | st.booleans(),
            },
        ),
    },
)


@given(MEMBERS)
def test_requests_that_match_the_published_schema_are_valid(members):
    sent = document(**members)
    Schema.model_validate(sent)
    read(**members)


def test_published_schema_has_exactly_the_accepted_members():
    assert set(Schema.model_fields) == {"user", "candidates", "candidate_keys", "ranking"}
    assert set(Ranking.model_fields) == {"policy", "weights", "top_k", "explain"}
    assert description().task_names == FEED.task_names
