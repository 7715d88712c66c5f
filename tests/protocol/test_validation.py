"""Documents as columns: places keep the name that the caller gave them."""

import pytest

from app.errors import FieldError, InvalidRequest
from app.protocol.validation import (
    MISSING,
    MOST_PROBLEMS,
    Side,
    ValidationReport,
    candidate_side,
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
def test_a_pointer_follows_the_form_that_was_sent(written_as, pointers):
    side = Side({}, 2, written_as)
    row = 0 if written_as == "user" else 1
    assert (side.pointer("a"), side.pointer("a", row), side.pointer("a", row, 2)) == pointers


def test_names_are_escaped_as_json_pointers_are():
    assert join("/user", "a/b~c") == "/user/a~1b~0c"
    assert join("", "") == "/"


def test_the_user_is_one_row():
    side = user_side({"age": 3}, frozenset(["age"]), ValidationReport())
    assert (side.columns, side.rows) == ({"age": [3]}, 1)


def test_objects_become_columns_and_gaps_are_missing_not_null():
    report = ValidationReport()
    known = frozenset(["a", "b", "c"])
    side = candidate_side([{"a": 1, "b": None}, {"a": 2}], known, report, max_rows=9)
    assert side.columns == {"a": [1, 2], "b": [None, MISSING]}
    assert (side.rows, report.problems) == (2, [])


def test_findings_keep_the_first_problems_and_raise_them_all():
    report = ValidationReport()
    report.raise_any()
    for i in range(MOST_PROBLEMS + 5):
        report.add(f"/{i}", "is wrong")
    assert report.full
    with pytest.raises(InvalidRequest) as caught:
        report.raise_any()
    assert caught.value.problems == [FieldError(f"/{i}", "is wrong") for i in range(MOST_PROBLEMS)]
