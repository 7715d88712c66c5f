"""The two sides of a JSON document as columns of values, whichever way they were written.

Candidates come as an object of columns (`{"item_id": [11, 12]}`) or as a list of objects
(`[{"item_id": 11}, {"item_id": 12}]`). Either becomes a `Side`, which also knows what to call a
place in the document that was sent, as a JSON pointer (RFC 6901).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from app.errors import FieldError, InvalidRequest, PayloadTooLarge

MOST_PROBLEMS = 20
"""A report names so many problems at most: one wrong column can hold thousands."""

NO_FEATURE = "is no feature of this side of the model"

_LONGEST_NAME = 64  # characters of a name that a pointer repeats


Matrix = npt.NDArray[np.float64]
"""A dense feature's column `[n, width]` that its reader found to be nothing but numbers."""


class Missing:
    """Stands for a value that was not sent."""


MISSING = Missing()


@dataclass(slots=True)
class ValidationReport:
    """What reading one document brought to light: problems, and ids outside their vocabulary."""

    problems: list[FieldError] = field(default_factory=list)
    unknown_ids: dict[str, int] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        """Whether there are as many problems as a report names."""
        return len(self.problems) >= MOST_PROBLEMS

    def raise_any(self) -> None:
        """Raise InvalidRequest if there are problems."""
        if self.problems:
            raise InvalidRequest(self.problems)

    def add(self, pointer: str, detail: str) -> None:
        """Note a problem, unless there are enough."""
        if not self.full:
            self.problems.append(FieldError(pointer, detail))

    def unknown_keys(
        self,
        pointer: str,
        sent: Mapping[str, object],
        known: frozenset[str],
        detail: str | None = None,
    ) -> None:
        """Note a problem for each member of an object that nobody reads."""
        if sent.keys() <= known:
            return
        detail = detail or f"is not known; known: {', '.join(sorted(known))}"
        for name in sent:
            if self.full:
                break
            if name not in known:
                self.add(join(pointer, name), detail)


@dataclass(frozen=True, slots=True)
class Side:
    """The user's or the candidates' features as they were sent, one list of `rows` values each."""

    columns: Mapping[str, Sequence[Any] | Matrix]
    rows: int
    written_as: Literal["user", "columns", "objects"]
    refused: frozenset[str] = frozenset()
    """Features whose column as a whole is wrong; that is among the report already."""

    def pointer(self, name: str, row: int | None = None, element: int | None = None) -> str:
        """Return the JSON pointer of a feature, of one row's value, or of one of its elements."""
        at = "" if row is None else f"/{row}"
        inside = "" if element is None else f"/{element}"
        match self.written_as:
            case "user":
                return f"{join('/user', name)}{inside}"
            case "columns":
                return f"{join('/candidates', name)}{at}{inside}"
            case "objects":
                return f"{join('/candidates' + (at or '/0'), name)}{inside}"


def user_side(user: object, known: frozenset[str], report: ValidationReport) -> Side:
    """Read `{"age": 3}` as columns of one row; `known` are the names of the user's features."""
    if not isinstance(user, dict):
        report.add("/user", "must be an object, feature name to value")
        return Side({}, 1, "user", known)
    report.unknown_keys("/user", user, known, NO_FEATURE)
    return Side({name: [user[name]] for name in known if name in user}, 1, "user")


def candidate_side(
    candidates: object, known: frozenset[str], report: ValidationReport, *, max_rows: int
) -> Side:
    """Read candidates written as columns or as objects; `known` are the names of their features.

    Raises:
        PayloadTooLarge: there are more than `max_rows` candidates.
    """
    if isinstance(candidates, dict):
        return _from_columns(candidates, known, report, max_rows)
    if isinstance(candidates, list):
        return _from_objects(candidates, known, report, max_rows)
    report.add("/candidates", "must be an object of columns, or a list of objects")
    return Side({}, 0, "columns", known)


def _from_columns(
    candidates: dict[str, Any], known: frozenset[str], report: ValidationReport, max_rows: int
) -> Side:
    report.unknown_keys("/candidates", candidates, known, NO_FEATURE)
    columns: dict[str, list[Any] | Matrix] = {}
    refused: set[str] = set()
    for name, values in candidates.items():
        if report.full:
            break
        if name not in known:
            continue
        first, expected = next(iter(columns.items()), (name, values))
        if not isinstance(values, list | np.ndarray):
            detail = "must be a list, one value a candidate"
        elif len(values) != len(expected):
            detail = (
                f"has {len(values)} values, but {join('/candidates', first)} has {len(expected)}"
            )
        else:
            columns[name] = values
            continue
        report.add(join("/candidates", name), detail)
        refused.add(name)
    rows = len(next(iter(columns.values()), []))
    _check_count(rows, max_rows)
    return Side(columns, rows, "columns", frozenset(refused))


def _from_objects(
    candidates: list[Any], known: frozenset[str], report: ValidationReport, max_rows: int
) -> Side:
    _check_count(len(candidates), max_rows)
    objects = [each if isinstance(each, dict) else {} for each in candidates]
    for row, candidate in enumerate(candidates):
        if report.full:
            break
        if not isinstance(candidate, dict):
            report.add(f"/candidates/{row}", "must be an object, feature name to value")
        else:
            report.unknown_keys(f"/candidates/{row}", candidate, known, NO_FEATURE)
    # Only of known names: columns of whatever names were sent would take rows x names of memory.
    columns = {
        name: [each.get(name, MISSING) for each in objects]
        for name in known
        if not objects or any(name in each for each in objects)
    }
    return Side(columns, len(objects), "objects")


def _check_count(rows: int, max_rows: int) -> None:
    if rows > max_rows:
        raise PayloadTooLarge(f"{rows} candidates; the limit is {max_rows}")


def join(pointer: str, name: str) -> str:
    """Return the pointer of an object's member; an overlong name is cut."""
    shown = name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "…"
    return f"{pointer}/{shown.replace('~', '~0').replace('/', '~1')}"
