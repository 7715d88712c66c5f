"""Hypothesis strategies: manifests, documents that fit them, and damage with its place.

`expected` is the encoder as one would write it first: one value at a time, in plain Python.
"""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from app.artifacts.columns import Column, column_dtype, column_shape
from app.artifacts.manifest import DenseInput, IdInput, IdListInput, Input, Manifest
from tests.app.builders import manifest

NAMES = ("a", "b", "c", "d", "e")
MOST_ROWS = 4
TEXT = "a-value-that-nobody-may-echo"
NUMBER = 987654321987
INT64 = st.integers(-(2**63), 2**63 - 1)
NUMBERS = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.integers(-(2**70), 2**70),
    st.booleans(),
)


@dataclass
class Case:
    """A manifest, and a document that fits it: `features[name]` holds what was meant to be sent."""

    manifest: Manifest
    user: dict[str, Any]
    candidates: Any
    rows: int


@st.composite
def inputs(draw: st.DrawFn, name: str) -> Input:
    side = draw(st.sampled_from(("user", "candidate")))
    kind = draw(st.sampled_from((DenseInput, IdInput, IdListInput)))
    if kind is DenseInput:
        dim = draw(st.integers(1, 3))
        dense = st.tuples(*[st.floats(-9, 9)] * dim)
        return DenseInput(name=name, side=side, dim=dim, default=draw(st.none() | dense))
    size = draw(st.integers(1, 12))
    unknown = draw(st.just("reject") | st.integers(0, size - 1))
    ids = st.integers(0, size - 1) if unknown == "reject" else INT64
    common: dict[str, Any] = {
        "name": name,
        "side": side,
        "vocabulary_size": size,
        "unknown": unknown,
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
    """What may be sent for a feature of one user or candidate."""
    if isinstance(feature, DenseInput):
        row: st.SearchStrategy[Any] = st.lists(NUMBERS, min_size=feature.dim, max_size=feature.dim)
        return NUMBERS | row if feature.dim == 1 else row
    ids = st.integers(-2, feature.vocabulary_size + 2) | INT64
    if feature.unknown == "reject":
        ids = st.integers(0, feature.vocabulary_size - 1)
    return ids if isinstance(feature, IdInput) else st.lists(ids, max_size=feature.max_length)


@st.composite
def cases(draw: st.DrawFn, *, fewest_rows: int = 0) -> Case:
    drawn = draw(manifests())
    user = {
        each.name: draw(values(each))
        for each in drawn.user_inputs
        if each.default is None or draw(st.booleans())
    }
    rows = draw(st.integers(fewest_rows, MOST_ROWS))
    if draw(st.booleans()):
        objects = [
            {
                each.name: draw(values(each))
                for each in drawn.candidate_inputs
                if each.default is None or draw(st.booleans())
            }
            for _ in range(rows)
        ]
        return Case(drawn, user, objects, rows)
    columns = {
        each.name: draw(st.lists(values(each), min_size=rows, max_size=rows))
        for each in drawn.candidate_inputs
        if each.default is None or draw(st.booleans())
    }
    return Case(drawn, user, columns, rows if columns else 0)


def sent(case: Case, feature: Input) -> list[Any]:
    """The values of a feature, defaults in place, one a row."""
    default = feature.default
    if feature.side == "user":
        return [case.user.get(feature.name, default)]
    if isinstance(case.candidates, dict):
        column: list[Any] = case.candidates.get(feature.name, [default] * case.rows)
        return column
    return [each.get(feature.name, default) for each in case.candidates]


def expected(case: Case, feature: Input) -> tuple[Column, int]:
    """A feature's column and the number of its unknown ids."""
    unknown = 0

    def known(identifier: int) -> int:
        nonlocal unknown
        if isinstance(feature, DenseInput) or 0 <= identifier < feature.vocabulary_size:
            return identifier
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
            ids = [known(each) for each in value]
            padding = [feature.padding] * (feature.max_length - len(ids))
            rows.append(ids + padding if feature.padding_side == "right" else padding + ids)
    shape = column_shape(feature, len(rows))
    return np.array(rows, column_dtype(feature)).reshape(shape), unknown


@dataclass
class Damage:
    """A wrong value, and its place in the document."""

    place: tuple[str | int, ...]
    value: Any

    @property
    def pointer(self) -> str:
        return "".join(f"/{each}" for each in self.place)


def wrong_values(feature: Input) -> list[tuple[tuple[int, ...], Any]]:
    """Wrong values for a feature, each with the place inside it that is to blame."""
    text: list[tuple[tuple[int, ...], Any]] = [((), TEXT), ((), None), ((), {TEXT: NUMBER})]
    if isinstance(feature, DenseInput):
        bad: list[Any] = [TEXT, None, float("nan"), float("-inf"), 1e39, -(10**400), [NUMBER]]
        inside = [((i,), [0.5] * i + [x]) for i in (feature.dim - 1,) for x in bad]
        ragged = [((), [0.5] * (feature.dim + 1)), ((), [])]
        scalar = [((), NUMBER)] if feature.dim > 1 else [((), x) for x in bad[:-1]]
        return text + inside + ragged + scalar
    ids: list[Any] = [TEXT, None, True, False, 1.0, float("nan"), 2**63, -(2**63) - 1, [NUMBER]]
    if feature.unknown == "reject":
        ids += [NUMBER, -NUMBER]
    if isinstance(feature, IdInput):
        return text + [((), each) for each in ids]
    last = feature.max_length - 1
    too_long = [0] * (feature.max_length + 1)
    return [*text, ((), too_long), ((), 7), ((), True)] + [
        ((last,), [0] * last + [each]) for each in ids
    ]


@st.composite
def damaged(draw: st.DrawFn) -> tuple[Case, list[Damage]]:
    """A document with one or more wrong values, at most one for each feature."""
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
    """What an RFC 6901 pointer points to."""
    for part in pointer.split("/")[1:]:
        step = part.replace("~1", "/").replace("~0", "~")
        document = document[int(step) if isinstance(document, list) else step]
    return document
