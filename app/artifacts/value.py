"""The base of what the files of an artifact or a table say."""

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """A frozen part of a document: unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")
