"""The inputs of a model, its features: what a request may send, and what the module gets for it."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from app.artifacts.encoding import Encoding, Hashed, Id, Identity
from app.artifacts.value import Value

FEATURE_NAME_PATTERN = r"^[^\s./\\\p{C}](?:[^/\\\p{C}]{0,62}[^\s/\\\p{C}])?$"

FeatureName = Annotated[str, Field(pattern=FEATURE_NAME_PATTERN)]
"""1 to 64 characters of any script, with spaces inside; no slashes and no control characters."""
Side = Literal["user", "candidate"]
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Float32 = Annotated[float, Field(ge=-3.4e38, le=3.4e38, allow_inf_nan=False)]


class DenseInput(Value):
    """A vector of float32, `[·, dim]`; a plain number is accepted where `dim` is 1.

    `default` is the value of a feature that a request leaves out. `missing` says what null and NaN
    become: an error (`refuse`), the numbers of `default` in their place, or NaN (`nan`), which the
    module then fills itself. With `nan`, a feature that is left out is NaN too: `default` then only
    states what the module makes of it.
    """

    kind: Literal["dense"] = "dense"
    name: FeatureName
    side: Side
    dim: int = Field(1, ge=1)
    default: tuple[Float32, ...] | None = None
    missing: Literal["refuse", "default", "nan"] = "refuse"

    @model_validator(mode="after")
    def _default_has_dim_numbers(self) -> Self:
        if self.default is not None and len(self.default) != self.dim:
            raise ValueError(f"default has {len(self.default)} numbers, dim is {self.dim}")
        if self.default is None and self.missing != "refuse":
            raise ValueError(f'missing = "{self.missing}" requires a default')
        return self

    @property
    def absent(self) -> tuple[float, ...] | None:
        """The numbers of a feature that a request leaves out; None if it is required."""
        return (math.nan,) * self.dim if self.missing == "nan" else self.default


class _Vocabulary(Value):
    name: FeatureName
    side: Side
    vocabulary_size: Int64 = Field(ge=1)
    unknown: int | Literal["reject"] = 0
    """The row of an id outside `[0, vocabulary_size)`; `reject` makes such an id an error."""
    missing: Literal["refuse", "unknown"] = "refuse"
    """What null is in place of an id: an error, or an unknown id. Null in place of a list is then
    an empty list."""
    encoding: Encoding = Identity()
    """How the ids of a request become rows of the embedding table."""

    @model_validator(mode="after")
    def _unknown_is_a_row(self) -> Self:
        if self.unknown != "reject" and not 0 <= self.unknown < self.vocabulary_size:
            raise ValueError(f"unknown must be in [0, {self.vocabulary_size}) or 'reject'")
        if self.unknown == "reject" and self.missing == "unknown":
            raise ValueError('missing = "unknown" requires a row for unknown ids')
        if isinstance(self.encoding, Hashed) and self.vocabulary_size <= self.encoding.buckets:
            raise ValueError(
                f"vocabulary_size must be greater than encoding.buckets, {self.encoding.buckets}"
            )
        return self

    def _check_default(self, ids: tuple[Id, ...]) -> None:
        if not all(type(id_) is self.encoding.id_type for id_ in ids):
            id_types = "strings" if self.encoding.id_type is str else "integers"
            raise ValueError(f"default: ids of this encoding are {id_types}")
        rows = ids if isinstance(self.encoding, Identity) else ()
        if self.unknown == "reject" and not all(0 <= int(r) < self.vocabulary_size for r in rows):
            raise ValueError(
                f"default must be in [0, {self.vocabulary_size}), since unknown ids are rejected"
            )


class IdInput(_Vocabulary):
    """One id; its column is int64, `[·]`."""

    kind: Literal["id"] = "id"
    default: Int64 | str | None = None

    @property
    def absent(self) -> Id | None:
        """The id of a feature that a request leaves out; None if it is required."""
        return self.default

    @model_validator(mode="after")
    def _default_is_accepted(self) -> Self:
        self._check_default(() if self.default is None else (self.default,))
        return self


class IdListInput(_Vocabulary):
    """Up to `max_length` ids; int64 `[·, max_length]`, where missing ids are `padding`.

    If a length, a mask or the ids of an empty list are derived from the list, its `padding` is no
    id: in the column it would look like a missing id.
    """

    kind: Literal["id_list"] = "id_list"
    max_length: int = Field(ge=1)
    padding: Int64 = -1
    padding_side: Literal["left", "right"] = "right"
    default: tuple[Int64 | str, ...] | None = None
    _is_measured: bool = PrivateAttr(False)

    @property
    def reserves_padding(self) -> bool:
        """Whether `padding` is a row of the table that no id of a request may have."""
        return 0 <= self.padding < self.vocabulary_size and self._is_measured

    def measured(self) -> Self:
        """Return the list as part of a description that derives something from it.

        Raises:
            ValueError: an id of the default has the row of the padding.
        """
        if not 0 <= self.padding < self.vocabulary_size:
            return self
        copied = self.model_copy()
        copied._is_measured = True  # noqa: SLF001 - of this class
        if isinstance(self.encoding, Identity):
            rows = [copied.known(int(row)) for row in self.default or ()]
            if self.padding in rows:
                raise ValueError(f"{self.name}: default contains {self.padding}, the padding")
        return copied

    def known(self, row: int) -> int | str:
        """Return a row of the table: this one, or what `unknown` says of a row outside it."""
        return row if 0 <= row < self.vocabulary_size else self.unknown

    @property
    def absent(self) -> tuple[Id, ...] | None:
        """The list of a feature that a request leaves out; None if it is required."""
        return self.default

    @model_validator(mode="after")
    def _default_fits(self) -> Self:
        if self.default is not None and len(self.default) > self.max_length:
            raise ValueError(f"default is longer than max_length, {self.max_length}")
        self._check_default(self.default or ())
        return self


Input = Annotated[DenseInput | IdInput | IdListInput, Field(discriminator="kind")]
