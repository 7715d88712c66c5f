"""Features that come from item and user tables, because a request names them by a key.

The value of a feature is what the request sends; else what the table has; else the feature's
default. A key is looked up only if the request leaves something to the table: a request with every
feature of a side never fails because of its key.

    {"user": 42, "candidates": [11, 12]}
    {"user": {"user_id": 42, "age": 3}, "candidates": {"item_id": [11, 12], "price": [1, 2]}}
    {"user": 42, "candidates": [{"item_id": 11, "price": 1}, 12]}

What the table does with a key that it does not have is its own property: `error` refuses the
request, `default` gives the candidate the defaults of the features, `drop` does not score it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from app.artifacts.columns import Column
from app.artifacts.encoding import NO_VOCABULARY, Id, Vocabularies
from app.artifacts.inputs import Input
from app.artifacts.manifest import Manifest
from app.artifacts.model_tables import BoundTable, ModelTables
from app.engine.request import Positions, RequestFeatures, TableRows, TableUse
from app.protocol.features import (
    column_by_value,
    default_column,
    encode_feature,
    encode_plain,
    encode_side,
    required,
)
from app.protocol.validation import (
    MISSING,
    Missing,
    Side,
    TableKey,
    ValidationReport,
    candidate_side,
    check_count,
    is_huge_integer,
    join,
    user_side,
)
from app.ranking.batch import RankedRequest
from app.ranking.formulas import Scores

Mask = npt.NDArray[np.bool_]

MOST_POSITIONS = 100
"""The most positions of unknown keys that a message or a response lists."""


@dataclass(slots=True)
class EncodedSide:
    """One side of a request.

    Attributes:
        columns: those that do not come from a table.
        rows: of each column.
        sent: rows that the request has; more than `rows` if candidates were dropped.
        bound: the table that was asked, if one was.
        table: what comes from it when the batch is collated.
        unknown: the rows of the request whose keys the table does not have.
        kept: the rows of the request that are scored; None for all.
    """

    columns: dict[str, Column]
    rows: int
    sent: int
    bound: BoundTable | None = None
    table: TableRows | None = None
    unknown: Positions | None = None
    kept: Positions | None = None


def encode_with_tables(
    manifest: Manifest,
    tables: ModelTables,
    user: object,
    candidates: object,
    report: ValidationReport,
    *,
    max_candidates: int,
    vocabularies: Vocabularies = MappingProxyType({}),
) -> RequestFeatures:
    """Check a request's features and keys; see `app.protocol.features.encode`.

    Raises:
        PayloadTooLarge: there are more than `max_candidates` candidates.
    """
    if isinstance(user, dict) and isinstance(candidates, dict):
        plain = encode_plain(manifest, user, candidates, report, max_candidates, vocabularies)
        if plain is not None:
            return plain
        report.unknown_ids.clear()  # they are counted again
    encoded_user = _encode_user(manifest, tables.users, user, vocabularies, report)
    encoded_candidates = _encode_candidates(
        manifest, tables.items, candidates, vocabularies, report, max_candidates
    )
    return join_sides(encoded_user, encoded_candidates, report)


def join_sides(
    user: EncodedSide, candidate: EncodedSide, report: ValidationReport
) -> RequestFeatures:
    """Return a request's features."""
    used: TableUse | None = None
    asked = [side for side in (candidate, user) if side.bound is not None]
    if asked:
        versions: dict[str, str] = {}
        unknown: dict[str, Positions] = {}
        for side in asked:
            assert side.bound is not None
            versions[side.bound.kind] = side.bound.table.label
            if side.unknown is not None:
                unknown[side.bound.kind] = side.unknown
        used = TableUse(
            user.table, candidate.table, versions, unknown, candidate.kept, candidate.sent
        )
    return RequestFeatures(
        user.columns, candidate.columns, candidate.rows, report.unknown_ids, used
    )


def _encode_user(
    manifest: Manifest,
    bound: BoundTable | None,
    user: object,
    vocabularies: Vocabularies,
    report: ValidationReport,
) -> EncodedSide:
    needed = required(manifest.user_inputs) if user is MISSING else ()
    if bound is None:
        side = user_side(user, manifest.user_names, report, needed)
        return EncodedSide(encode_side(side, manifest.user_inputs, vocabularies, report), 1, 1)
    if isinstance(user, dict) or user is MISSING:
        side = user_side(user, bound.accepted, report, needed, (bound.table.key, bound.kind))
    else:
        encoded = by_keys(bound, [user], vocabularies, report)
        if encoded is not None:
            return encoded
        side = Side({bound.table.key: [user]}, 1, "user_key")
    return _encode_side(side, bound, vocabularies, report)


def _encode_candidates(
    manifest: Manifest,
    bound: BoundTable | None,
    candidates: object,
    vocabularies: Vocabularies,
    report: ValidationReport,
    max_candidates: int,
) -> EncodedSide:
    if bound is None:
        side = candidate_side(candidates, manifest.candidate_names, report, max_rows=max_candidates)
        features = manifest.candidate_inputs
        columns = encode_side(side, features, vocabularies, report)
        return EncodedSide(columns, side.rows, side.rows)
    if isinstance(candidates, list) and candidates and not isinstance(candidates[0], dict):
        check_count(len(candidates), max_candidates)
        encoded = by_keys(bound, candidates, vocabularies, report)
        if encoded is not None:
            return encoded
    if are_keys(candidates):
        assert isinstance(candidates, list)
        side = Side({bound.table.key: candidates}, len(candidates), "keys")
    else:
        if isinstance(candidates, list):
            key = bound.table.key
            candidates = [
                {key: candidate} if _may_be_key(candidate) else candidate
                for candidate in candidates
            ]
        side = candidate_side(
            candidates,
            bound.accepted,
            report,
            max_rows=max_candidates,
            key=(bound.table.key, bound.kind),
        )
    return _encode_side(side, bound, vocabularies, report)


def are_keys(candidates: object) -> bool:
    """Whether candidates are keys only: a list without objects."""
    return (
        isinstance(candidates, list) and bool(candidates) and dict not in set(map(type, candidates))
    )


def by_keys(
    bound: BoundTable, keys: Sequence[Any], vocabularies: Vocabularies, report: ValidationReport
) -> EncodedSide | None:
    """Look up a list of keys only; None if any is wrong or unknown, or is not enough.

    The general path has the same result. This one takes half the time.
    """
    if not bound.is_complete or set(map(type, keys)) != {bound.table.key_type}:
        return None
    try:
        positions = find(bound, keys)
    except (OverflowError, UnicodeEncodeError):
        return None
    if positions.min() < 0:
        return None
    rows = len(keys)
    columns = {
        feature.name: default_column(
            feature, rows, vocabularies.get(feature.name, NO_VOCABULARY), report
        )
        for feature in bound.others
    }
    taken = TableRows(bound.table, positions, bound.names, bound.folded_for)
    return EncodedSide(columns, rows, rows, bound, taken)


def find(bound: BoundTable, keys: Sequence[Any]) -> Positions:
    """Return the positions of keys, all of the table's type; -1 for unknown ones.

    Raises:
        OverflowError: an integer does not fit into int64.
        UnicodeEncodeError: a string has a lone surrogate, so no UTF-8 form.
    """
    if bound.table.key_type is int:
        keys = np.fromiter(keys, np.int64, len(keys))  # type: ignore[assignment]
    return bound.table.find(keys)


def _encode_side(
    side: Side, bound: BoundTable, vocabularies: Vocabularies, report: ValidationReport
) -> EncodedSide:
    """Encode a side that may leave features to a table."""
    key = bound.table.key
    if key in side.refused:  # what the table has is not missing: the key is wrong
        side = replace(side, refused=side.refused | bound.names)
    absent = [
        name
        for name in bound.names
        if name not in side.columns and name not in side.refused and name != key
    ]
    partial = _partial(side, bound) if side.written_as == "objects" else {}
    wanted = _wanted(side, key, absent, partial)
    if wanted is None:
        return EncodedSide(_sent(side, bound, vocabularies, report), side.rows, side.rows)
    sent = side.rows
    positions = _look_up(side, bound, wanted, report)
    if positions is None:
        return EncodedSide({}, sent, sent)
    unknown = np.flatnonzero(wanted & (positions < 0))
    kept = None
    if unknown.size:
        report.unknown_keys[bound.kind] = len(unknown)
        kept = refuse_or_drop(bound, unknown, sent, _place(side, bound), report)
        if kept is not None:
            side = side.only(kept.tolist())
            positions, wanted = positions[kept], wanted[kept]
            partial = _partial(side, bound) if partial else {}
    columns, table = _columns(
        side,
        bound,
        positions,
        wanted,
        partial,
        vocabularies,
        report,
        is_key_refused=bool(unknown.size) and refuses(bound),
    )
    return EncodedSide(
        columns, side.rows, sent, bound, table, unknown if unknown.size else None, kept
    )


def _sent(
    side: Side, bound: BoundTable, vocabularies: Vocabularies, report: ValidationReport
) -> dict[str, Column]:
    """Encode a side that leaves nothing to the table."""
    columns: dict[str, Column] = {}
    for feature in bound.features:
        key = _key_for(feature.name, side, bound)
        column = encode_feature(side, feature, vocabularies, report, key)
        if column is not None:
            columns[feature.name] = column
    return columns


def _key_for(name: str, side: Side, bound: BoundTable) -> TableKey | None:
    """Return the key that could have been sent in place of a feature, if the table has it."""
    key = bound.table.key
    is_sent = key in side.columns and side.written_as != "objects"
    return None if is_sent or name not in bound.names else (key, bound.kind)


def _partial(side: Side, bound: BoundTable) -> dict[str, Sequence[Any]]:
    """Return the columns of the table's features that some candidates lack."""
    partial: dict[str, Sequence[Any]] = {}
    for name in bound.names:
        values = side.columns.get(name)
        # Only a list of objects lacks values, and it has no matrices.
        if name != bound.table.key and isinstance(values, list) and MISSING in values:
            partial[name] = values
    return partial


def _wanted(
    side: Side, key: str, absent: Sequence[str], partial: Mapping[str, Sequence[Any]]
) -> Mask | None:
    """Return for which rows the table is asked, bool `[n]`; None for no row."""
    keys = side.columns.get(key)
    if keys is None or not (absent or partial or side.written_as in ("keys", "user_key")):
        return None
    wanted = np.ones(side.rows, np.bool_)
    if side.written_as == "objects":
        if not absent:
            wanted = _missing(partial)
        wanted &= ~np.fromiter([value is MISSING for value in keys], np.bool_, side.rows)
    return wanted


def _missing(columns: Mapping[str, Sequence[Any]]) -> Mask:
    """Return which rows lack a value in any of the columns."""
    lacking = [[value is MISSING for value in values] for values in columns.values()]
    missing: Mask = np.logical_or.reduce(np.array(lacking, np.bool_))
    return missing


def _place(side: Side, bound: BoundTable) -> str:
    """Return the pointer of all keys of a side."""
    match side.written_as:
        case "user" | "user_key":
            return side.pointer(bound.table.key, 0)
        case "columns":
            return join("/candidates", bound.table.key)
        case _:
            return "/candidates"


def _look_up(
    side: Side,
    bound: BoundTable,
    wanted: Mask,
    report: ValidationReport,
) -> Positions | None:
    """Return the rows' positions in the table, int64 `[n]`; None if a key is wrong."""
    rows = np.flatnonzero(wanted).tolist()
    column = side.columns[bound.table.key]
    keys = list(column) if len(rows) == side.rows else [column[row] for row in rows]
    positions = np.full(side.rows, -1)
    if not rows:
        return positions
    kind = bound.table.key_type
    try:
        if set(map(type, keys)) == {kind}:
            positions[wanted] = find(bound, keys)
            return positions
    except (OverflowError, UnicodeEncodeError):
        pass
    for row, key in zip(rows, keys, strict=True):
        if report.full:
            break
        if (rule := key_rule(key, kind)) is not None:
            detail = f"{rule}, a key of the {bound.kind} table"
            if side.written_as == "user_key" and not _may_be_key(key):
                detail = f"must be a key of the {bound.kind} table, or an object of user features"
            report.add(side.pointer(bound.table.key, row), detail)
    return None


def _may_be_key(value: object) -> bool:
    """Return whether a value was sent as a key, right or wrong."""
    return isinstance(value, Id) or is_huge_integer(value)


def key_rule(key: object, kind: type[Id]) -> str | None:
    """Return the rule that a key breaks, if it breaks one."""
    if kind is int and is_huge_integer(key):
        return "must fit in int64"
    if type(key) is not kind:
        return "must be a string" if kind is str else "must be an integer"
    if isinstance(key, int):
        return None if -(2**63) <= key < 2**63 else "must fit in int64"
    try:
        str(key).encode()
    except UnicodeEncodeError:
        return "must be valid Unicode"
    return None


def refuses(bound: BoundTable | None) -> bool:
    """Return whether a table refuses unknown keys; only candidates can be dropped."""
    if bound is None or bound.table.unknown == "default":
        return False
    return bound.table.unknown == "error" or bound.kind == "users"


def refuse_or_drop(
    bound: BoundTable, unknown: Positions, rows: int, pointer: str, report: ValidationReport
) -> Positions | None:
    """Apply the table's policy to unknown keys; return the rows that are kept if it drops some.

    Args:
        bound: the table.
        unknown: the rows in the request whose keys it does not have.
        rows: how many the request has.
        pointer: of the keys.
        report: takes the problem, if that is the policy.
    """
    if not refuses(bound):
        if bound.table.unknown == "default":
            return None
        kept = np.ones(rows, np.bool_)
        kept[unknown] = False
        return np.flatnonzero(kept)
    table = f"{bound.kind} table (version {bound.table.label})"
    if bound.kind == "users":
        report.add(pointer, f"the {table} has no such key")
        return None
    listed = ", ".join(map(str, unknown[:MOST_POSITIONS].tolist()))
    more = len(unknown) - MOST_POSITIONS
    at = f"at position{'s' if len(unknown) > 1 else ''} {listed}"
    if more > 0:
        at += f" and {more} more"
    report.add(pointer, f"{len(unknown)} of {rows} keys are not in the {table}: {at}")
    return None


def _columns(
    side: Side,
    bound: BoundTable,
    positions: Positions,
    wanted: Mask,
    partial: Mapping[str, Sequence[Any]],
    vocabularies: Vocabularies,
    report: ValidationReport,
    *,
    is_key_refused: bool,
) -> tuple[dict[str, Column], TableRows | None]:
    """Encode what is sent, and say what comes from the table."""
    columns: dict[str, Column] = {}
    gathered: set[str] = set()
    is_uniform = bool(wanted.all())
    for feature in bound.features:
        name = feature.name
        is_absent = name in bound.names and name not in side.columns
        if name in side.refused or (is_key_refused and name == bound.table.key):
            continue
        if is_absent and is_uniform:
            gathered.add(name)
        elif is_absent or name in partial:
            columns[name] = _mixed(feature, side, bound, positions, wanted, vocabularies, report)
        else:
            key = _key_for(name, side, bound)
            column = encode_feature(side, feature, vocabularies, report, key)
            if column is not None:
                columns[name] = column
    if not gathered:
        return columns, None
    folded_for = bound.folded_by(gathered, positions)
    return columns, TableRows(bound.table, positions, frozenset(gathered), folded_for)


def _mixed(
    feature: Input,
    side: Side,
    bound: BoundTable,
    positions: Positions,
    wanted: Mask,
    vocabularies: Vocabularies,
    report: ValidationReport,
) -> Column:
    """Return a column that some candidates send and the table has for others."""
    values: Any = side.columns.get(feature.name, [MISSING] * side.rows)
    is_missing = np.fromiter([isinstance(value, Missing) for value in values], np.bool_, side.rows)
    from_table = is_missing & wanted
    vocabulary = vocabularies.get(feature.name, NO_VOCABULARY)
    rows = np.flatnonzero(~from_table).tolist()
    key = _key_for(feature.name, side, bound)
    column = column_by_value(feature, values, side, report, vocabulary, rows=rows, key=key)
    column[from_table] = bound.table.gather(feature.name, positions[from_table])
    return column


def spread(used: TableUse, ranked: RankedRequest) -> tuple[Scores, Scores]:
    """Return scores `[K, n]` and rank scores `[n]` of all candidates; NaN for dropped ones."""
    by_task = np.full((ranked.scores.shape[1], used.sent), np.nan, np.float32)
    rank_score = np.full(used.sent, np.nan, np.float32)
    by_task[:, used.kept] = ranked.scores.T
    rank_score[used.kept] = ranked.rank_score
    return by_task, rank_score


def spread_request(used: TableUse, ranked: RankedRequest) -> RankedRequest:
    """Return the result of all candidates in the request: NaN for dropped ones."""
    if used.kept is None:
        return ranked
    by_task, rank_score = spread(used, ranked)
    return RankedRequest(by_task.T, ranked.sort_keys, rank_score, used.kept[ranked.ranking])


def routing_key(sent: object, name: str, features: RequestFeatures) -> object:
    """Return the user feature that routes a request: as sent, or else as the table has it."""
    rows = None if features.tables is None else features.tables.user
    if sent is not None or rows is None or name not in rows.names or not len(rows.positions):
        return sent
    return features.user_column(name).ravel()[0].item()
