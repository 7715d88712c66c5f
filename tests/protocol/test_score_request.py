"""Score requests: every member is checked, and every problem is reported at once."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, strategies as st

from app.api.openapi.schemas import Ranking, ScoreRequest as Schema
from app.artifacts.manifest import Manifest
from app.engine.request import RequestFeatures
from app.errors import FieldError, InvalidRequest, PayloadTooLarge
from app.protocol.dialect import ParseContext
from app.protocol.native import Keys, read_request
from app.protocol.validation import MOST_PROBLEMS
from app.ranking.policy import LARGEST_WEIGHT, Policy
from app.ranking.ranker import RankingOptions
from tests.support.builders import description, manifest, own_rankers
from tests.support.documents import NUMBER, TEXT
from tests.support.fakes import sums_model

FEED = manifest(
    ranking=Policy(name="feed", formula="power_product", weights={"click": 1.0, "dwell": 0.5})
)


def context(of: Manifest = FEED, *, max_candidates: int = 100) -> ParseContext:
    """A model without a program: reading a request needs none."""
    model = replace(sums_model(), manifest=of)
    return ParseContext(model, own_rankers(of), {}, max_candidates)


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


def test_a_request_with_features_only_takes_the_models_policy_and_positions():
    request = read()
    assert request.ranking.ranker.policy == FEED.ranking
    assert request.keys is None
    assert request.ranking.top_k is None
    assert request.features.rows == 3
    np.testing.assert_array_equal(request.features.user["recent"], [[4, 7, -1]])
    np.testing.assert_array_equal(request.features.candidate["item"], [1, 2, 3])


@pytest.mark.parametrize("sent", [None, [], 1, TEXT, True], ids=str)
def test_a_document_that_is_no_object_is_refused_as_a_whole(sent):
    assert problems(sent) == [FieldError("", "must be an object")]


def test_an_unknown_member_is_named_and_the_known_ones_are_told():
    (problem,) = problems(document(candidate=[]))
    assert problem.pointer == "/candidate"
    assert problem.detail == "is not known; known: candidate_keys, candidates, ranking, user"


def test_a_member_that_is_missing_is_not_taken_for_an_empty_one():
    without = document()
    del without["candidates"]
    assert [problem.pointer for problem in problems(without)] == ["/candidates"]
    without = document()
    del without["user"]
    assert [problem.pointer for problem in problems(without)] == ["/user/age"]


def test_null_is_no_ranking_and_no_keys():
    request = read(ranking=None, candidate_keys=None)
    assert (request.ranking.ranker.policy, request.keys) == (FEED.ranking, None)


def test_keys_are_strings_or_integers_and_kept_as_they_are():
    assert read(candidate_keys=["v1", 2, ""]).keys == ["v1", 2, ""]


@pytest.mark.parametrize("keys", [["a"], ["a", "b", "c", "d"], []], ids=len)
def test_keys_for_another_number_of_candidates_are_refused(keys):
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
    assert problem.detail == f"duplicate key: the same as /candidate_keys/{first}"


def test_every_duplicate_key_is_reported():
    assert pointers(candidate_keys=["a", "a", "a"]) == ["/candidate_keys/1", "/candidate_keys/2"]


def test_string_and_integer_are_different_keys():
    assert read(candidate_keys=["1", 1, 2]).keys == ["1", 1, 2]


@pytest.mark.parametrize("keys", [TEXT, 3, {"0": "a"}, True], ids=str)
def test_keys_that_are_no_list_are_refused(keys):
    assert pointers(candidate_keys=keys) == ["/candidate_keys"]


@pytest.mark.parametrize("key", [None, True, 1.5, ["a"], {"a": 1}], ids=str)
def test_a_key_of_another_type_is_refused_at_its_place(key):
    assert pointers(candidate_keys=["a", key, "c"]) == ["/candidate_keys/1"]


def test_keys_are_not_counted_where_the_candidates_themselves_are_wrong():
    candidates = {"item": [1, 2], "quality": [[0, 1]]}
    assert pointers(candidates=candidates, candidate_keys=["a"]) == ["/candidates/quality"]


def test_no_candidates_are_a_request_like_any_other():
    request = read(candidates=[], candidate_keys=[])
    assert request.features.rows == 0
    assert request.keys == []


@pytest.mark.parametrize("ranking", [[], 1, TEXT, False], ids=str)
def test_ranking_options_that_are_no_object_are_refused(ranking):
    assert pointers(ranking=ranking) == ["/ranking"]


def test_an_unknown_ranking_option_is_named():
    assert pointers(ranking={"top_n": 3, "weight": {}}) == ["/ranking/top_n", "/ranking/weight"]


@pytest.mark.parametrize("top_k", [1, 2, 10**6])
def test_top_k_is_a_whole_number(top_k):
    assert read(ranking={"top_k": top_k}).ranking.top_k == top_k


@pytest.mark.parametrize("top_k", [0, -1, 1.0, True, TEXT, [1]], ids=str)
def test_a_top_k_that_is_no_whole_number_above_zero_is_refused(top_k):
    assert pointers(ranking={"top_k": top_k}) == ["/ranking/top_k"]


@pytest.mark.parametrize("explain", [None, False, True])
def test_an_explanation_is_made_where_one_is_asked_for(explain):
    assert read(ranking={"explain": explain}).ranking.explain is (explain is True)


@pytest.mark.parametrize("explain", [0, 1, TEXT, [True]], ids=str)
def test_an_explain_that_is_not_true_or_false_is_refused(explain):
    assert pointers(ranking={"explain": explain}) == ["/ranking/explain"]


def test_a_policy_may_be_named_if_it_is_the_models():
    assert read(ranking={"policy": "feed"}).ranking.ranker.policy == FEED.ranking
    assert read(ranking={"policy": None}).ranking.ranker.policy == FEED.ranking


@pytest.mark.parametrize("policy", [TEXT, 1, ["feed"], {}, True], ids=str)
def test_another_policy_is_refused(policy):
    (problem,) = problems(document(ranking={"policy": policy}))
    assert problem.pointer == "/ranking/policy"
    assert problem.detail == "is no policy of this model; it has feed"


def test_weights_replace_the_policys_and_leave_the_others():
    policy = read(ranking={"weights": {"dwell": -2}}).ranking.ranker.policy
    assert policy.weights == {"click": 1.0, "dwell": -2}
    assert (policy.name, policy.formula) == ("feed", "power_product")
    assert FEED.ranking.weights == {"click": 1.0, "dwell": 0.5}


def test_a_task_that_the_policy_does_not_weigh_may_be_given_a_weight():
    narrow = manifest(ranking=Policy(weights={"click": 1.0}))
    sent = document(ranking={"weights": {"dwell": 3.0}})
    _, ranking, _ = read_request(sent, context(narrow))
    policy = ranking.ranker.policy
    assert policy.weights == {"click": 1.0, "dwell": 3.0}


@pytest.mark.parametrize("weight", [LARGEST_WEIGHT, -LARGEST_WEIGHT, 0, 0.5])
def test_a_weight_within_its_bounds_passes(weight):
    policy = read(ranking={"weights": {"click": weight}}).ranking.ranker.policy
    assert policy.weights["click"] == weight


@pytest.mark.parametrize(
    "weight",
    [LARGEST_WEIGHT * 1.001, -1e9, 10**400, float("nan"), float("inf"), True, None, TEXT, [1]],
    ids=lambda weight: str(weight)[:20],
)
def test_a_weight_that_is_no_bounded_number_is_refused(weight):
    (problem,) = problems(document(ranking={"weights": {"click": weight}}))
    assert problem.pointer == "/ranking/weights/click"
    assert problem.detail == "must be a number from -1e+06 to 1e+06"


def test_weights_are_not_applied_where_a_full_report_left_them_unread():
    candidates = [TEXT] * MOST_PROBLEMS
    found = pointers(candidates=candidates, ranking={"weights": {"click": [1]}})
    assert found == [f"/candidates/{row}" for row in range(MOST_PROBLEMS)]


def test_a_weight_for_an_unknown_task_is_refused():
    assert pointers(ranking={"weights": {"like": 1.0}}) == ["/ranking/weights/like"]


@pytest.mark.parametrize("weights", [[], 1, TEXT], ids=str)
def test_weights_that_are_no_object_are_refused(weights):
    assert pointers(ranking={"weights": weights}) == ["/ranking/weights"]


def test_features_keys_and_options_are_reported_together_and_no_value_is_echoed():
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


def test_the_message_says_the_first_problem_and_how_many_more():
    with pytest.raises(InvalidRequest) as caught:
        read(ranking={"top_k": 0, "policy": "other"})
    assert str(caught.value) == (
        "/ranking/policy: is no policy of this model; it has feed (and 1 more)"
    )


def test_too_many_candidates_are_too_large_not_invalid():
    with pytest.raises(PayloadTooLarge, match="3 candidates; the limit is 2"):
        read_request(document(), context(max_candidates=2))


def test_a_name_is_repeated_up_to_a_length_only():
    (pointer,) = pointers(**{"x" * 1000: 1})
    assert pointer == f"/{'x' * 64}…"


MEMBERS = st.fixed_dictionaries(
    {},
    optional={
        "candidate_keys": st.none()
        | st.lists(st.text() | st.integers(), min_size=3, max_size=3, unique=True),
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
def test_whatever_the_published_schema_describes_is_read(members):
    sent = document(**members)
    Schema.model_validate(sent)
    read(**members)


def test_the_published_schema_has_the_members_that_are_read():
    assert set(Schema.model_fields) == {"user", "candidates", "candidate_keys", "ranking"}
    assert set(Ranking.model_fields) == {"policy", "weights", "top_k", "explain"}
    assert description().task_names == FEED.task_names
