"""Refusals: reported once, when files are whole, and repeated until something changes."""

import pytest

from app.lifecycle.refusals import Refusals

OLD = frozenset({("model.ts", 1, 100, 0, 0)})
NEW = frozenset({("model.ts", 1, 200, 0, 0)})


class Listed(Refusals[str]):
    """Refusals that list their reports."""

    def __init__(self, *, may_be_copied: bool = True) -> None:
        self.reasons: dict[str, str] = {}
        self.reports: list[tuple[str, str]] = []
        super().__init__(
            self.reasons,
            lambda key, reason: self.reports.append((key, reason)),
            may_be_copied=lambda: may_be_copied,
        )


@pytest.fixture
def refusals():
    return Listed()


def test_broken_files_are_reported_when_they_have_stopped_changing(refusals):
    refusals.add("feed/2", "short", OLD)
    assert refusals.reasons == {"feed/2": "short"}
    assert refusals.reports == []
    assert not refusals.repeat("feed/2", NEW)  # the copy goes on
    refusals.add("feed/2", "shorter", NEW)
    assert refusals.reports == []
    for _ in range(3):
        assert refusals.repeat("feed/2", NEW)
    assert refusals.reports == [("feed/2", "shorter")]


def test_whole_files_are_reported_at_once():
    at_start = Listed(may_be_copied=False)
    at_start.add("feed/2", "short", OLD)
    assert at_start.reports == [("feed/2", "short")]
    serving = Listed()
    serving.add("feed/2", "fails its gate", OLD, circumstances=1)
    serving.add("feed/3", "needs a table")
    assert serving.reports == [("feed/2", "fails its gate"), ("feed/3", "needs a table")]


def test_what_is_tried_at_each_look_is_reported_when_the_reason_changes(refusals):
    for _ in range(3):
        refusals.add("feed/2", "cannot be read now")
        assert not refusals.repeat("feed/2", OLD)
    refusals.add("feed/2", "needs a table")
    assert refusals.reports == [("feed/2", "cannot be read now"), ("feed/2", "needs a table")]


def test_an_examination_is_repeated_when_files_or_circumstances_change(refusals):
    refusals.add("feed/2", "fails its gate", OLD, circumstances=1)
    assert refusals.repeat("feed/2", OLD, 1)
    assert not refusals.repeat("feed/2", OLD, 2)
    assert not refusals.repeat("feed/2", NEW, 1)


def test_files_that_are_wrong_are_wrong_in_all_circumstances(refusals):
    refusals.add("feed/2", "damaged", OLD)
    assert refusals.repeat("feed/2", OLD, 1)


def test_what_is_good_or_gone_is_forgotten(refusals):
    for version in (2, 3, 4):
        refusals.add(f"feed/{version}", "damaged", OLD)
    refusals.forget("feed/2")
    del refusals.reasons["feed/4"]  # the registry does this when a version is added
    refusals.keep_only(lambda key: key == "feed/3")
    assert refusals.reasons == {"feed/3": "damaged"}
    assert [f"feed/{version}" in refusals for version in (2, 3, 4)] == [False, True, False]
    refusals.add("feed/2", "damaged", OLD)
    assert refusals.repeat("feed/2", OLD)
    assert refusals.reports == [("feed/2", "damaged")]  # again: it was forgotten
