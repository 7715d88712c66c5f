"""Validation: places, messages, suggestions, and candidates as columns."""

import pytest

from app.errors import FieldError, InvalidRequest
from app.protocol.validation import (
    MISSING,
    MOST_PROBLEMS,
    Side,
    ValidationReport,
    candidate_side,
    check_keys,
    join,
    user_side,
)


@pytest.mark.parametrize(
    ("written_as", "pointers"),
    [
        ("user", ("/user/a", "/user/a", "/user/a/2")),
        ("columns", ("/candidates/a", "/candidates/a/1", "/candidates/a/1/2")),
        ("objects", ("/candidates/0/a", "/candidates/1/a", "/candidates/1/a/2")),
    ],
)
def test_pointer_follows_the_form_of_the_request(written_as, pointers):
    side = Side({}, 2, written_as)
    row = 0 if written_as == "user" else 1
    assert (side.pointer("a"), side.pointer("a", row), side.pointer("a", row, 2)) == pointers


def test_names_are_escaped_in_json_pointers():
    assert join("/user", "a/b~c") == "/user/a~1b~0c"
    assert join("", "") == "/"


def test_user_is_one_row():
    side = user_side({"age": 3}, frozenset(["age"]), ValidationReport())
    assert (side.columns, side.rows) == ({"age": [3]}, 1)


def test_objects_become_columns_and_absent_values_are_missing():
    report = ValidationReport()
    known = frozenset(["a", "b", "c"])
    side = candidate_side([{"a": 1, "b": None}, {"a": 2}], known, report, max_rows=9)
    assert side.columns == {"a": [1, 2], "b": [None, MISSING]}
    assert (side.rows, report.problems) == (2, [])


def test_report_keeps_the_first_problems_and_raises_them_together():
    report = ValidationReport()
    report.raise_any()
    for i in range(MOST_PROBLEMS + 5):
        report.add(f"/{i}", "is wrong")
    assert report.full
    with pytest.raises(InvalidRequest) as caught:
        report.raise_any()
    assert caught.value.problems == [FieldError(f"/{i}", "is wrong") for i in range(MOST_PROBLEMS)]


KNOWN = frozenset(["age_bucket", "country", "user_id"])


def details(report):
    return [problem.detail for problem in report.problems]


def test_unknown_feature_is_reported_with_suggestion_and_known_names():
    report = ValidationReport()
    user_side({"age_bukcet": 3, "iq": 1}, KNOWN, report)
    assert details(report) == [
        'unknown user feature "age_bukcet"; did you mean "age_bucket"? '
        "(known: age_bucket, country, user_id)",
        'unknown user feature "iq" (known: age_bucket, country, user_id)',
    ]
    report = ValidationReport()
    candidate_side([{"age_bukcet": 3}], KNOWN, report, max_rows=9)
    assert details(report)[0].startswith('unknown candidate feature "age_bukcet"; did you mean')


def test_message_lists_at_most_20_known_names():
    known = frozenset(f"feature_{number:02}" for number in range(25))
    report = ValidationReport()
    report.unknown_members("", {"x" * 100: 1}, known)
    (detail,) = details(report)
    assert detail.startswith(f'unknown key "{"x" * 64}…" (known: feature_00, feature_01, ')
    assert detail.endswith("feature_19 and 5 more)")


def test_suggestions_compare_a_bounded_number_of_names(monkeypatch):
    """Comparing is slow: with 512 known names of 25 characters, one suggestion takes 30 ms."""
    compared: list[int] = []

    def did_you_mean(name, known):  # noqa: ARG001
        compared.append(len(known))
        return ""

    monkeypatch.setattr("app.protocol.validation.did_you_mean", did_you_mean)
    for known, expected in ((frozenset(map(str, range(512))), 1), (KNOWN, MOST_PROBLEMS)):
        compared.clear()
        report = ValidationReport()
        report.unknown_members("", {f"unknown {number}": 1 for number in range(100)}, known)
        assert len(report.problems) == MOST_PROBLEMS
        assert len(compared) == expected
    compared.clear()
    report = ValidationReport()
    candidate_side([{"same": 1}] * 50, KNOWN, report, max_rows=99)
    assert compared == [3]


def test_missing_candidates_are_reported_as_required():
    report = ValidationReport()
    candidate_side(MISSING, KNOWN, report, max_rows=9)
    assert details(report) == [
        "is required: an object of feature columns, or a list of candidate objects"
    ]


@pytest.mark.parametrize("keys", [None, [], ["a"], [1, "1"]])
def test_valid_keys_are_returned_unchanged(keys):
    report = ValidationReport()
    assert check_keys(keys, len(keys or []), report) is keys
    assert report.problems == []
