"""Find inputs that a module does not use as they are described.

A module accepts any numbers. A description with a wrong order, width or kind gives wrong scores
without an error. So each position of each input is changed, and some output must change. Also, if
the fraction of a number never matters, the module uses the number as an id.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from app.artifacts.columns import Column, ModelInputs
from app.artifacts.inputs import DenseInput, IdListInput, Input
from app.artifacts.program import Program, Raw
from app.errors import ArtifactInvalid
from app.importing.description import ForeignModel
from app.importing.samples import generate

SCALES = (1.0, 10.0, 1e3, 1e6)
"""Dense values are changed by about this much, the smallest change first."""
_ATTEMPTS = 8
_LARGEST_BATCH = 1024

Bools = npt.NDArray[np.bool_]
Change = Callable[["_Position", Column], Column]
"""Returns changed values of a position, `[attempts]`, from those that it has."""


@dataclass(frozen=True, slots=True)
class _Position:
    """One number of an input: the whole of an id, an element of a vector or of a list."""

    feature: Input
    index: int

    def __str__(self) -> str:
        is_single = getattr(self.feature, "dim", getattr(self.feature, "max_length", 1)) == 1
        return self.feature.name if is_single else f"{self.feature.name}[{self.index}]"


def refuse_misused_inputs(program: Program, model: ForeignModel) -> None:
    """Change every input of `program`, whose rows must not depend on each other.

    Raises:
        ArtifactInvalid: an input has no influence on any output, or a dense one is used as an id.
    """
    positions = [
        _Position(feature, index)
        for feature in model.inputs
        if feature.name not in model.unused and _can_change(feature)
        for index in range(_width(feature))
    ]
    trial = _Influence(program, model)
    idle = positions
    for scale in SCALES:
        idle = trial.without_influence(idle, _other_value(model, scale))
        if not idle:
            break
    idle = [position for position in idle if not _is_between(position, positions, idle)]
    if idle:
        names = ", ".join(map(str, idle[:8])) + (", ..." if len(idle) > 8 else "")
        raise ArtifactInvalid(
            f"no output depends on {names}: check the order, the widths and the kinds of the "
            "inputs, and the ranges of dense ones; an input that the module really ignores must be "
            "named in `unused`"
        )
    _refuse_numbers_used_as_ids(trial, positions)


def _is_between(
    position: _Position, positions: Sequence[_Position], idle: Sequence[_Position]
) -> bool:
    """Whether positions on both sides in the same list matter: in a long list, one may be faint."""
    if not isinstance(position.feature, IdListInput):
        return False
    matters = [
        other.index
        for other in positions
        if other.feature is position.feature and other not in idle
    ]
    return bool(matters) and matters[0] < position.index < matters[-1]


def _refuse_numbers_used_as_ids(trial: "_Influence", positions: Sequence[_Position]) -> None:
    dense = [position for position in positions if isinstance(position.feature, DenseInput)]
    stepped = trial.without_influence(dense, _other_fraction())
    for pair in (
        (0, 1),
        (1, 2),
        (0, 2),
    ):  # a threshold separates two of the three values, a table all
        same = trial.without_influence(stepped, _constant(pair[1]), base=_constant(pair[0]))
        stepped = [position for position in stepped if position not in same]
    if stepped:
        raise ArtifactInvalid(
            f"{stepped[0]} is described as dense, but the module uses only the whole part of its "
            'values: if it is an id, its kind must be "id" or "id_list"; also check the widths of '
            "the inputs beside it"
        )


class _Influence:
    """Runs a module on pairs of batches that differ in one position per row."""

    def __init__(self, program: Program, model: ForeignModel) -> None:
        self._program = program
        self._model = model

    def without_influence(
        self, positions: Sequence[_Position], change: Change, *, base: Change | None = None
    ) -> list[_Position]:
        """Return the positions whose change changes no output, or makes the module fail."""
        at_once = _LARGEST_BATCH // _ATTEMPTS
        chunks = [positions[i : i + at_once] for i in range(0, len(positions), at_once)]
        return [
            position
            for chunk in chunks
            for position, has_influence in zip(
                chunk, self._have_influence(chunk, change, base), strict=True
            )
            if not has_influence
        ]

    def _have_influence(
        self, positions: Sequence[_Position], change: Change, base: Change | None
    ) -> list[bool]:
        before = _full(generate(self._model, (1,) * (len(positions) * _ATTEMPTS)), self._model)
        if base is not None:
            before = _changed(before, positions, base)
        try:
            differs = _differs(
                self._program.run(before),
                self._program.run(_changed(before, positions, change)),
            )
        except (RuntimeError, ValueError):
            # One position's value may have failed the whole batch.
            if len(positions) == 1:
                return [False]
            half = len(positions) // 2
            return [
                *self._have_influence(positions[:half], change, base),
                *self._have_influence(positions[half:], change, base),
            ]
        return [bool(attempts.any()) for attempts in differs.reshape(len(positions), _ATTEMPTS)]


def _can_change(feature: Input) -> bool:
    return isinstance(feature, DenseInput) or feature.vocabulary_size > 1


def _width(feature: Input) -> int:
    if isinstance(feature, DenseInput):
        return feature.dim
    return feature.max_length if isinstance(feature, IdListInput) else 1


def _full(batch: ModelInputs, model: ForeignModel) -> ModelInputs:
    """Replace padding in id lists by ids: each position must hold something to be changed."""
    columns = _copied(batch)
    random = np.random.default_rng(1)
    for feature in model.inputs:
        if isinstance(feature, IdListInput):
            column = (columns.user if feature.side == "user" else columns.candidate)[feature.name]
            column[:] = random.integers(0, feature.vocabulary_size, column.shape)
    return columns


def _changed(batch: ModelInputs, positions: Sequence[_Position], change: Change) -> ModelInputs:
    """Return a copy in which rows `8 i` to `8 i + 7` have position `i` changed."""
    copied = _copied(batch)
    for i, position in enumerate(positions):
        feature = position.feature
        column = (copied.user if feature.side == "user" else copied.candidate)[feature.name]
        matrix = column.reshape(len(column), -1)  # a view
        rows = slice(i * _ATTEMPTS, (i + 1) * _ATTEMPTS)
        matrix[rows, position.index] = change(position, matrix[rows, position.index])
    return copied


def _copied(batch: ModelInputs) -> ModelInputs:
    return ModelInputs(
        {name: column.copy() for name, column in batch.user.items()},
        {name: column.copy() for name, column in batch.candidate.items()},
        batch.row_to_request,
    )


def _other_value(model: ForeignModel, scale: float) -> Change:
    random = np.random.default_rng(2)

    def change(position: _Position, values: Column) -> Column:
        feature = position.feature
        if isinstance(feature, DenseInput):
            if feature.name in model.ranges:
                return random.uniform(*model.ranges[feature.name], len(values)).astype(np.float32)
            sign = np.where(np.arange(len(values)) % 2, -1, 1)
            return (values + sign * scale * random.uniform(0.5, 1.5, len(values))).astype(
                np.float32
            )
        others = random.integers(1, feature.vocabulary_size, len(values))
        return (values + others) % feature.vocabulary_size

    return change


def _other_fraction() -> Change:
    random = np.random.default_rng(3)

    def change(_: _Position, values: Column) -> Column:
        whole = np.trunc(values)
        return (whole + np.copysign(random.uniform(0.01, 0.99, len(values)), values)).astype(
            np.float32
        )

    return change


def _constant(value: float) -> Change:
    return lambda _, values: np.full_like(values, value)


def _differs(one: Raw, other: Raw) -> Bools:
    """Whether any output of a row differs, `[B]`."""
    different: Bools = ((one != other) & ~(np.isnan(one) & np.isnan(other))).any(axis=1)
    return different
