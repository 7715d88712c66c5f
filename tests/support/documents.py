"""Hypothesis strategies: manifests, valid requests for them, and invalid values with location.

`expected` is a naive encoder: it converts one value at a time in plain Python.
"""

import binascii
import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from app.artifacts.columns import Column, column_dtype, column_shape
from app.artifacts.encoding import Hashed, Id, Identity, Listed
from app.artifacts.inputs import DenseInput, IdInput, IdListInput, Input
from app.artifacts.manifest import Manifest
from tests.support.builders import manifest

NAMES = ("a", "b", "c", "d", "e")
MOST_ROWS = 4
TEXT = "a-value-that-no-response-may-repeat"
NUMBER = 987654321987
INT64 = st.integers(-(2**63), 2**63 - 1)
LISTED: dict[str, tuple[Id, ...]] = {
    "string": ("a", "é", "item-1", "\n", '"'),
    "int64": (0, -1, 2**63 - 1, 7, 12),
}
NUMBERS = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.integers(-(2**70), 2**70),
    st.booleans(),
)


@dataclass
class Case:
    """A manifest and a valid request for it."""

    manifest: Manifest
    user: dict[str, Any]
    candidates: Any
    rows: int

    @property
    def vocabularies(self) -> dict[str, dict[Id, int]]:
        return {
            feature.name: listed(feature.encoding, feature.vocabulary_size)
            for feature in self.manifest.inputs
            if not isinstance(feature, DenseInput)
        }


@st.composite
def encodings(draw: st.DrawFn, size: int) -> Identity | Hashed | Listed:
    ids = draw(st.sampled_from(("string", "int64")))
    kind = draw(st.sampled_from((Identity, Hashed, Listed)))
    if kind is Hashed and size > 1:
        return Hashed(ids=ids, buckets=size - 1, seed=draw(st.integers(0, 2**63 - 1)))
    if kind is Listed and size > 1:
        return Listed(ids=ids, file="vocabulary.ids.jsonl")
    return Identity()


def listed(encoding: Identity | Hashed | Listed, size: int) -> dict[Id, int]:
    """Return the content of a vocabulary file for `size` rows."""
    if not isinstance(encoding, Listed):
        return {}
    return {identifier: row for row, identifier in enumerate(LISTED[encoding.ids][: size - 1], 1)}


def any_ids(encoding: Identity | Hashed | Listed) -> st.SearchStrategy[Any]:
    if isinstance(encoding, Identity):
        return INT64
    return st.sampled_from(LISTED[encoding.ids]) | (
        st.text() if encoding.ids == "string" else INT64
    )


def known_ids(encoding: Identity | Hashed | Listed, size: int) -> st.SearchStrategy[Any]:
    """Ids with a row in the embedding table."""
    if isinstance(encoding, Identity):
        return st.integers(0, size - 1)
    if isinstance(encoding, Listed):
        return st.sampled_from(sorted(listed(encoding, size), key=str))
    return st.text(min_size=1) if encoding.ids == "string" else INT64


@st.composite
def inputs(draw: st.DrawFn, name: str) -> Input:
    side = draw(st.sampled_from(("user", "candidate")))
    kind = draw(st.sampled_from((DenseInput, IdInput, IdListInput)))
    if kind is DenseInput:
        dim = draw(st.integers(1, 3))
        dense = st.tuples(*[st.floats(-9, 9)] * dim)
        return DenseInput(name=name, side=side, dim=dim, default=draw(st.none() | dense))
    size = draw(st.integers(1, 12))
    encoding = draw(encodings(size))
    unknown = draw(st.just("reject") | st.integers(0, size - 1))
    ids = known_ids(encoding, size) if unknown == "reject" else any_ids(encoding)
    common: dict[str, Any] = {
        "name": name,
        "side": side,
        "vocabulary_size": size,
        "unknown": unknown,
        "encoding": encoding,
    }
    if kind is IdInput:
        return IdInput(**common, default=draw(st.none() | ids))
    length = draw(st.integers(1, 3))
    return IdListInput(
        **common,
        max_length=length,
        padding=draw(st.sampled_from((-1, 0, 5, 2**63 - 1))),
        padding_side=draw(st.sampled_from(("left", "right"))),
        default=draw(st.none() | st.lists(ids, max_size=length).map(tuple)),
    )


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    return manifest(inputs=tuple(draw(inputs(name)) for name in names))


def values(feature: Input) -> st.SearchStrategy[Any]:
    """Valid values of a feature of one user or candidate."""
    if isinstance(feature, DenseInput):
        row: st.SearchStrategy[Any] = st.lists(NUMBERS, min_size=feature.dim, max_size=feature.dim)
        return NUMBERS | row if feature.dim == 1 else row
    ids = any_ids(feature.encoding)
    if isinstance(feature.encoding, Identity):
        ids |= st.integers(-2, feature.vocabulary_size + 2)
    if feature.unknown == "reject":
        ids = known_ids(feature.encoding, feature.vocabulary_size)
    return ids if isinstance(feature, IdInput) else st.lists(ids, max_size=feature.max_length)


@st.composite
def cases(draw: st.DrawFn, *, fewest_rows: int = 0) -> Case:
    drawn = draw(manifests())
    user = {
        feature.name: draw(values(feature))
        for feature in drawn.user_inputs
        if feature.default is None or draw(st.booleans())
    }
    rows = draw(st.integers(fewest_rows, MOST_ROWS))
    if draw(st.booleans()):
        objects = [
            {
                feature.name: draw(values(feature))
                for feature in drawn.candidate_inputs
                if feature.default is None or draw(st.booleans())
            }
            for _ in range(rows)
        ]
        return Case(drawn, user, objects, rows)
    columns = {
        feature.name: draw(st.lists(values(feature), min_size=rows, max_size=rows))
        for feature in drawn.candidate_inputs
        if feature.default is None or draw(st.booleans())
    }
    return Case(drawn, user, columns, rows if columns else 0)


def sent(case: Case, feature: Input) -> list[Any]:
    """Return the values of a feature, one per row, with defaults filled in."""
    default = feature.default
    if feature.side == "user":
        return [case.user.get(feature.name, default)]
    if isinstance(case.candidates, dict):
        column: list[Any] = case.candidates.get(feature.name, [default] * case.rows)
        return column
    return [candidate.get(feature.name, default) for candidate in case.candidates]


def expected(case: Case, feature: Input) -> tuple[Column, int]:
    """Return a feature's column and the number of its unknown ids."""
    unknown = 0

    def known(identifier: Id) -> int:
        nonlocal unknown
        assert not isinstance(feature, DenseInput)
        row = row_of(feature, identifier)
        if 0 <= row < feature.vocabulary_size:
            return row
        assert feature.unknown != "reject"
        unknown += 1
        return feature.unknown

    rows: list[Any] = []
    for value in sent(case, feature):
        if isinstance(feature, DenseInput):
            numbers = value if isinstance(value, list | tuple) else [value]
            rows.append([float(number) for number in numbers])
        elif isinstance(feature, IdInput):
            rows.append(known(value))
        else:
            ids = [known(identifier) for identifier in value]
            padding = [feature.padding] * (feature.max_length - len(ids))
            rows.append(ids + padding if feature.padding_side == "right" else padding + ids)
    shape = column_shape(feature, len(rows))
    return np.array(rows, column_dtype(feature)).reshape(shape), unknown


def row_of(feature: IdInput | IdListInput, identifier: Any) -> int:
    """Compute the row of an id as `app.artifacts.encoding` defines it; -1 if it has none."""
    encoding = feature.encoding
    if isinstance(encoding, Identity):
        return int(identifier)
    if isinstance(encoding, Listed):
        return listed(encoding, feature.vocabulary_size).get(identifier, -1)
    if identifier == "":
        return -1
    if encoding.ids == "string":
        content = identifier.encode()
        x = binascii.crc32(content) + (len(content) << 32)
    else:
        x = identifier % 2**64
    z = (x + (encoding.seed + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return 1 + (z ^ (z >> 31)) % encoding.buckets


@dataclass
class Damage:
    """An invalid value and its location in the request."""

    place: tuple[str | int, ...]
    value: Any

    @property
    def pointer(self) -> str:
        return "".join(f"/{part}" for part in self.place)


def wrong_values(feature: Input) -> list[tuple[tuple[int, ...], Any]]:
    """Return invalid values of a feature, each with the location of the error inside it."""
    text: list[tuple[tuple[int, ...], Any]] = [((), TEXT), ((), None), ((), {TEXT: NUMBER})]
    if isinstance(feature, DenseInput):
        bad: list[Any] = [TEXT, None, float("nan"), float("-inf"), 1e39, -(10**400), [NUMBER]]
        inside = [((i,), [0.5] * i + [x]) for i in (feature.dim - 1,) for x in bad]
        ragged = [((), [0.5] * (feature.dim + 1)), ((), [])]
        scalar = [((), NUMBER)] if feature.dim > 1 else [((), x) for x in bad[:-1]]
        return text + inside + ragged + scalar
    ids: list[Any] = [None, True, False, 1.0, float("nan"), [NUMBER]]
    if feature.encoding.id_type is str:
        text = [(place, x) for place, x in text if x != TEXT or isinstance(feature, IdListInput)]
        ids += [NUMBER]
        if isinstance(feature.encoding, Hashed):
            ids += ["\ud800" + TEXT]
    else:
        ids += [TEXT, 2**63, -(2**63) - 1]
    if feature.unknown == "reject" and not isinstance(feature.encoding, Hashed):
        ids += [TEXT] if feature.encoding.id_type is str else [NUMBER, -NUMBER]
    if isinstance(feature, IdInput):
        return text + [((), wrong) for wrong in ids]
    last = feature.max_length - 1
    good: Any = next(iter(listed(feature.encoding, feature.vocabulary_size)), None)
    if good is None:
        good = 0 if feature.encoding.id_type is int else "item"
    too_long = [good] * (feature.max_length + 1)
    return [*text, ((), too_long), ((), 7), ((), True)] + [
        ((last,), [good] * last + [wrong]) for wrong in ids
    ]


@st.composite
def damaged(draw: st.DrawFn) -> tuple[Case, list[Damage]]:
    """A request with one or more invalid values, at most one per feature."""
    case = draw(cases(fewest_rows=1).filter(lambda case: any(_places(case))))
    case.user, case.candidates = copy.deepcopy((case.user, case.candidates))
    by_feature: dict[str, list[tuple[str | int, ...]]] = {}
    for name, place in _places(case):
        by_feature.setdefault(name, []).append(place)
    names = draw(st.lists(st.sampled_from(sorted(by_feature)), min_size=1, unique=True))
    damages = []
    for feature in case.manifest.inputs:
        if feature.name in names:
            place = draw(st.sampled_from(by_feature[feature.name]))
            inside, value = draw(st.sampled_from(wrong_values(feature)))
            _put({"user": case.user, "candidates": case.candidates}, place, value)
            blamed = value[inside[0]] if inside else value
            damages.append(Damage((*place, *inside), blamed))
    return case, damages


def _places(case: Case) -> list[tuple[str, tuple[str | int, ...]]]:
    places: list[tuple[str, tuple[str | int, ...]]] = [(n, ("user", n)) for n in case.user]
    if isinstance(case.candidates, dict):
        return places + [
            (name, ("candidates", name, row))
            for name, column in case.candidates.items()
            for row in range(len(column))
        ]
    return places + [
        (name, ("candidates", row, name))
        for row, candidate in enumerate(case.candidates)
        for name in candidate
    ]


def _put(document: Any, place: tuple[str | int, ...], value: Any) -> None:
    for step in place[:-1]:
        document = document[step]
    document[place[-1]] = value


def resolve(document: Any, pointer: str) -> Any:
    """Return the value that a JSON pointer (RFC 6901) refers to."""
    for part in pointer.split("/")[1:]:
        step = part.replace("~1", "/").replace("~0", "~")
        document = document[int(step) if isinstance(document, list) else step]
    return document
