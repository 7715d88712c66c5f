"""What a model takes: the inputs that a manifest describes, one for each feature."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.artifacts.encoding import Encoding, Hashed, Id, Identity

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Side = Literal["user", "candidate"]
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Float32 = Annotated[float, Field(ge=-3.4e38, le=3.4e38, allow_inf_nan=False)]


class Value(BaseModel):
    """A frozen part of a manifest: unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DenseInput(Value):
    """A vector of float32, `[·, dim]`; a plain number is accepted where `dim` is 1."""

    kind: Literal["dense"] = "dense"
    name: Name
    side: Side
    dim: int = Field(1, ge=1)
    default: tuple[Float32, ...] | None = None

    @model_validator(mode="after")
    def _default_has_dim_numbers(self) -> Self:
        if self.default is not None and len(self.default) != self.dim:
            raise ValueError(f"default has {len(self.default)} numbers, dim is {self.dim}")
        return self


class _Vocabulary(Value):
    name: Name
    side: Side
    vocabulary_size: Int64 = Field(ge=1)
    unknown: int | Literal["reject"] = 0
    """The row that an id outside `[0, vocabulary_size)` maps to, or that it is an error."""
    encoding: Encoding = Identity()
    """How the ids of a request become rows."""

    @model_validator(mode="after")
    def _unknown_is_a_row(self) -> Self:
        if self.unknown != "reject" and not 0 <= self.unknown < self.vocabulary_size:
            raise ValueError(f"unknown must lie in [0, {self.vocabulary_size}) or be 'reject'")
        if isinstance(self.encoding, Hashed) and self.vocabulary_size <= self.encoding.buckets:
            raise ValueError(f"{self.encoding.buckets} buckets need a larger vocabulary_size")
        return self

    def _check_default(self, ids: tuple[Id, ...]) -> None:
        if not all(type(each) is self.encoding.id_type for each in ids):
            raise ValueError(f"default must be of {self.encoding.id_type.__name__} ids")
        rows = ids if isinstance(self.encoding, Identity) else ()
        if self.unknown == "reject" and not all(0 <= int(r) < self.vocabulary_size for r in rows):
            raise ValueError("default lies outside the vocabulary, where ids are rejected")


class IdInput(_Vocabulary):
    """One id; its column is int64, `[·]`."""

    kind: Literal["id"] = "id"
    default: Int64 | str | None = None

    @model_validator(mode="after")
    def _default_is_accepted(self) -> Self:
        self._check_default(() if self.default is None else (self.default,))
        return self


class IdListInput(_Vocabulary):
    """Up to `max_length` ids; int64 `[·, max_length]`, filled up with `padding`."""

    kind: Literal["id_list"] = "id_list"
    max_length: int = Field(ge=1)
    padding: Int64 = -1
    padding_side: Literal["left", "right"] = "right"
    default: tuple[Int64 | str, ...] | None = None

    @model_validator(mode="after")
    def _default_fits(self) -> Self:
        if self.default is not None and len(self.default) > self.max_length:
            raise ValueError(f"default is longer than max_length, {self.max_length}")
        self._check_default(self.default or ())
        return self


Input = Annotated[DenseInput | IdInput | IdListInput, Field(discriminator="kind")]
