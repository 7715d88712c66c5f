"""Validation of a request: a report of every problem, and the checks that both dialects share.

Candidates come as an object of columns (`{"item_id": [11, 12]}`) or as a list of objects
(`[{"item_id": 11}, {"item_id": 12}]`). Both become a `Side`: one column of values per feature. A
`Side` also knows the place of each value in the request, as a JSON pointer (RFC 6901).

Messages may repeat names (keys of objects), cut to 64 characters. They never repeat a value.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from app.errors import FieldError, InvalidRequest, PayloadTooLarge, did_you_mean

MISSING_FEATURE = "required feature is missing"

MOST_PROBLEMS = 20
"""The most problems that a report lists: one wrong column can hold thousands."""

LONGEST_KEY = 256
"""The most characters of a candidate key: 10 MB of keys would stop the event loop for 0.18 s."""

LARGEST_TIMEOUT_S = 600.0
"""The longest timeout that a request may ask for."""

_LONGEST_NAME = 64  # characters of a name that a message or a pointer repeats
_MOST_KNOWN = 20  # known names that a message lists
_MOST_COMPARISONS = 256
"""Names that a report compares to find suggestions. Comparing one takes up to 60 µs; the first
unknown name is always compared with every known one."""

Matrix = npt.NDArray[np.float64]
"""A dense feature's column `[n, width]` that its reader found to contain only numbers."""


class Missing:
    """The type of `MISSING`."""


MISSING = Missing()
"""Stands for a value that was not sent; null is a value."""

TableKey = tuple[str, str]
"""A key that may be sent in place of features, and the kind of its table: `items` or `users`."""


@dataclass(slots=True)
class ValidationReport:
    """The problems of one request, and how many ids and keys are unknown.

    Attributes:
        problems: at most 20 of them.
        unknown_ids: how many ids are outside the vocabulary of each feature.
        unknown_keys: how many keys the tables `items` and `users` do not have.
    """

    problems: list[FieldError] = field(default_factory=list)
    unknown_ids: dict[str, int] = field(default_factory=dict)
    unknown_keys: dict[str, int] = field(default_factory=dict)
    _suggestions: dict[str, str] = field(default_factory=dict, compare=False, repr=False)
    _comparisons: int = field(default=0, compare=False, repr=False)
    _missing: dict[tuple[str, TableKey | None], tuple[int, list[str]]] = field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def full(self) -> bool:
        """Whether the report holds as many problems as it may list."""
        return len(self.problems) >= MOST_PROBLEMS

    def raise_any(self) -> None:
        """Raise InvalidRequest if there are problems."""
        if self.problems:
            raise InvalidRequest(self.problems, unknown_keys=self.unknown_keys)

    def add(self, pointer: str, detail: str) -> None:
        """Add a problem, unless the report is full."""
        if not self.full:
            self.problems.append(FieldError(pointer, detail))

    def add_missing(self, pointer: str, name: str, key: TableKey | None = None) -> None:
        """Add a required feature that is not there; those of one object become one problem.

        Args:
            pointer: of the object that lacks the feature.
            name: of the feature.
            key: stands for the feature, if a table has it.
        """
        known = self._missing.get((pointer, key))
        if known is not None:
            position, names = known
            names.append(name)
            detail = f"required features are missing: {listing(names)}"
            self.problems[position] = FieldError(pointer, detail + _or_key(key, "them"))
        elif not self.full:
            self._missing[pointer, key] = len(self.problems), [name]
            has_key = key is not None and key[0] != name
            detail = MISSING_FEATURE + _or_key(key if has_key else None, "it")
            self.problems.append(FieldError(join(pointer, name), detail))

    def unknown_members(
        self,
        pointer: str,
        sent: Mapping[str, object],
        known: frozenset[str],
        what: str = "unknown key",
        known_as: str = "known",
    ) -> None:
        """Add a problem for each name of an object that is not in `known`.

        Args:
            pointer: of the object.
            sent: the object.
            known: the names that are accepted there.
            what: begins the message, before the name.
            known_as: what the message calls the accepted names.
        """
        if sent.keys() <= known:
            return
        for name in sent:
            if self.full:
                break
            if name not in known:
                nearest = self.suggest(name, known)
                detail = f'{what} "{cut(name)}"{nearest} ({known_as}: {listing(known)})'
                self.add(join(pointer, name), detail)

    def suggest(self, name: str, known: Collection[str]) -> str:
        """Return `; did you mean "x"?` or ""; all suggestions of a report take a bounded time."""
        suggestion = self._suggestions.get(name)
        if suggestion is None:
            suggestion = ""
            if self._comparisons == 0 or self._comparisons + len(known) <= _MOST_COMPARISONS:
                self._comparisons += len(known)
                suggestion = did_you_mean(cut(name), known)
            self._suggestions[name] = suggestion
        return suggestion


@dataclass(frozen=True, slots=True)
class Side:
    """The user's or the candidates' features as sent: one column of `rows` values per feature.

    Attributes:
        columns: by feature; a list of objects may lack a value here and there (`MISSING`).
        rows: values of each column.
        written_as: the form in the request. `user_key` and `keys` are keys of a table.
        refused: features whose whole column is wrong; the report already says so.
        origin: the row in the request of each row, if candidates were dropped.
    """

    columns: Mapping[str, Sequence[Any] | Matrix]
    rows: int
    written_as: Literal["user", "user_key", "columns", "objects", "keys"]
    refused: frozenset[str] = frozenset()
    origin: Sequence[int] | None = None

    def only(self, kept: Sequence[int]) -> "Side":
        """Return some of the rows."""
        columns = {
            name: values[kept] if isinstance(values, np.ndarray) else [values[row] for row in kept]
            for name, values in self.columns.items()
        }
        return Side(columns, len(kept), self.written_as, self.refused, kept)

    def pointer(self, name: str, row: int | None = None, element: int | None = None) -> str:
        """Return the JSON pointer of a feature, of one row's value, or of one of its elements."""
        if self.origin is not None and row is not None:
            row = self.origin[row]
        at = "" if row is None else f"/{row}"
        inside = "" if element is None else f"/{element}"
        match self.written_as:
            case "user_key" if row is not None:
                return "/user"
            case "keys" if row is not None:
                return f"/candidates{at}"
            case "user" | "user_key":
                return f"{join('/user', name)}{inside}"
            case "columns" | "keys":
                return f"{join('/candidates', name)}{at}{inside}"
            case "objects":
                return f"{join('/candidates' + (at or '/0'), name)}{inside}"

    def parent(self, row: int | None = None) -> str:
        """Return the JSON pointer of the object that has a row's features, or all columns."""
        if self.written_as in ("user", "user_key"):
            return "/user"
        if self.written_as != "objects":
            return "/candidates"
        if row is not None and self.origin is not None:
            row = self.origin[row]
        return f"/candidates/{row or 0}"


def user_side(
    user: object,
    known: frozenset[str],
    report: ValidationReport,
    needed: Sequence[str] = (),
    key: TableKey | None = None,
) -> Side:
    """Read `{"age": 3}` as columns of one row.

    Args:
        user: that member of the request, or `MISSING`.
        known: the names of the user features.
        report: takes every problem.
        needed: the features without a default.
        key: stands for the user, if the model has a table of users.
    """
    if user is MISSING:
        if not needed:
            return Side({}, 1, "user")
        form = "an object of user features"
        if key is not None:
            form = f"a key of the {key[1]} table, or {form}"
        report.add("/user", f"is required: {form}; the model needs: {listing(needed)}")
        return Side({}, 1, "user", known)
    if not isinstance(user, dict):
        rule = "must be an object that maps feature names to values"
        if isinstance(user, str | int):
            rule += "; a key alone needs a table of users, and the model has none"
        report.add("/user", rule)
        return Side({}, 1, "user", known)
    report.unknown_members("/user", user, known, "unknown user feature")
    return Side({name: [user[name]] for name in known if name in user}, 1, "user")


def candidate_side(
    candidates: object,
    known: frozenset[str],
    report: ValidationReport,
    *,
    max_rows: int,
    key: TableKey | None = None,
) -> Side:
    """Read candidates written as columns or as objects.

    Args:
        candidates: that member of the request, or `MISSING`.
        known: the names of the candidate features.
        report: takes every problem.
        max_rows: the most candidates that are accepted.
        key: stands for a candidate, if the model has a table of items.

    Raises:
        PayloadTooLarge: there are more than `max_rows` candidates.
    """
    if isinstance(candidates, dict):
        return _from_columns(candidates, known, report, max_rows)
    if isinstance(candidates, list):
        return _from_objects(candidates, known, report, max_rows)
    is_missing = isinstance(candidates, Missing)
    rule = "an object of feature columns, or a list of candidate objects"
    if key is not None:
        rule = f"a list of keys of the {key[1]} table, {rule}"
    report.add("/candidates", f"{'is required:' if is_missing else 'must be'} {rule}")
    return Side({}, 0, "columns", known)


def _from_columns(
    candidates: dict[str, Any], known: frozenset[str], report: ValidationReport, max_rows: int
) -> Side:
    report.unknown_members("/candidates", candidates, known, "unknown candidate feature")
    columns: dict[str, list[Any] | Matrix] = {}
    refused: set[str] = set()
    for name, values in candidates.items():
        if report.full:
            break
        if name not in known:
            continue
        first, expected = next(iter(columns.items()), (name, values))
        if not isinstance(values, list | np.ndarray):
            detail = "must be a list with one value per candidate"
        elif len(values) != len(expected):
            plural = "" if len(values) == 1 else "s"
            place = join("/candidates", first)
            detail = f"has {len(values)} value{plural}, but {place} has {len(expected)}"
        else:
            columns[name] = values
            continue
        report.add(join("/candidates", name), detail)
        refused.add(name)
    rows = len(next(iter(columns.values()), []))
    check_count(rows, max_rows)
    return Side(columns, rows, "columns", frozenset(refused))


def _from_objects(
    candidates: list[Any], known: frozenset[str], report: ValidationReport, max_rows: int
) -> Side:
    check_count(len(candidates), max_rows)
    if candidates and set(map(type, candidates)) <= {str, int}:
        rule = "must be an object of feature columns, or a list of candidate objects"
        report.add("/candidates", f"{rule}; to send keys only, the model needs a table of items")
        return Side({}, 0, "objects", known)
    objects = [candidate if isinstance(candidate, dict) else {} for candidate in candidates]
    for row, candidate in enumerate(candidates):
        if report.full:
            break
        if not isinstance(candidate, dict):
            detail = "must be an object that maps feature names to values"
            report.add(f"/candidates/{row}", detail)
        else:
            place = f"/candidates/{row}"
            report.unknown_members(place, candidate, known, "unknown candidate feature")
    # Of known names only: columns of any name that was sent would take rows x names of memory.
    columns = {
        name: [candidate.get(name, MISSING) for candidate in objects]
        for name in known
        if not objects or any(name in candidate for candidate in objects)
    }
    return Side(columns, len(objects), "objects")


def check_count(rows: int, max_rows: int) -> None:
    """Check the number of candidates.

    Raises:
        PayloadTooLarge: there are more than `max_rows`.
    """
    if rows > max_rows:
        raise PayloadTooLarge(f"too many candidates: {rows}, limit {max_rows}")


def check_keys(
    keys: object,
    rows: int,
    report: ValidationReport,
    place: str = "/candidate_keys",
    refused: Collection[int] = (),
) -> list[str | int] | None:
    """Check `candidate_keys`: one key per candidate, strings or integers, all different.

    Args:
        keys: that member of the request; None where it is absent or null.
        rows: the number of candidates.
        report: takes every problem; if it has any, the result is not fit for use.
        place: where the keys are in the request.
        refused: positions of keys that the report says to be wrong, beside those with their own
            pointer: one problem for a key is enough.

    Returns:
        The keys, or None if the request has none and positions stand for them.
    """
    if keys is None:
        return None
    if not isinstance(keys, list):
        report.add("/candidate_keys", "must be a list with one key per candidate")
        return None
    if len(keys) != rows:
        if not report.problems:  # otherwise the number of candidates may be wrong itself
            report.add("/candidate_keys", f"has {len(keys)} keys for {rows} candidates")
        return None
    if not _are_keys(keys):
        _report_keys(keys, report, place, frozenset(refused))
    return keys


def _are_keys(keys: list[Any]) -> bool:
    """Return whether every key is valid; 4096 keys take 0.1 ms."""
    types = set(map(type, keys))
    if not types <= {str, int}:
        return False
    if types == {int}:
        return len(set(keys)) == len(keys)
    strings = keys if types == {str} else [key for key in keys if isinstance(key, str)]
    return max(map(len, strings), default=0) <= LONGEST_KEY and len(set(keys)) == len(keys)


def _report_keys(
    keys: list[Any], report: ValidationReport, place: str, refused: frozenset[int]
) -> None:
    """Add a problem for each wrong key that has none yet, in order."""
    first: dict[str | int, int] = {}
    reported = {problem.pointer for problem in report.problems}
    for position, key in enumerate(keys):
        pointer = f"{place}/{position}"
        if position in refused or pointer in reported:
            continue
        if is_huge_integer(key):
            report.add(pointer, "must be a string, or an integer of 64 bits")
        elif not isinstance(key, str | int) or isinstance(key, bool):
            report.add(pointer, "must be a string or an integer")
        elif isinstance(key, str) and len(key) > LONGEST_KEY:
            detail = f"must have at most {LONGEST_KEY} characters, has {len(key)}"
            report.add(pointer, detail)
        elif (other := first.setdefault(key, position)) != position:
            report.add(pointer, f"duplicate key at position {position}, first at position {other}")
        if report.full:
            return


def is_huge_integer(value: object) -> bool:
    """Return whether a value may be an integer beyond 64 bits: JSON's reader makes it a float."""
    return type(value) is float and 2.0**63 <= abs(value) < math.inf


def _or_key(key: TableKey | None, missing: str) -> str:
    return "" if key is None else f"; send {missing}, or {key[0]}, the key of the {key[1]} table"


def join(pointer: str, name: str) -> str:
    """Return the pointer of an object's member; a name of more than 64 characters is cut."""
    return f"{pointer}/{cut(name).replace('~', '~0').replace('/', '~1')}"


def cut(name: str) -> str:
    """Return at most 64 characters of a name."""
    return name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "…"


def listing(names: Collection[str]) -> str:
    """Return names as part of a message: sorted, at most 20 of them."""
    listed = sorted(names)
    more = len(listed) - _MOST_KNOWN
    text = ", ".join(listed[:_MOST_KNOWN]) or "none"
    return f"{text} and {more} more" if more > 0 else text
