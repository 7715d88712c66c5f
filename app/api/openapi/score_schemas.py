"""Schemas of what score and rank calls receive and return.

Requests are not parsed with these: `app.protocol.features` and `app.api.rank` check them against
the manifest. Tests compare the two.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from app.protocol.validation import LONGEST_KEY
from app.ranking.policy import Formula

Key = Annotated[str, Field(max_length=LONGEST_KEY)]
Keys = Annotated[list[Key | int], Field(json_schema_extra={"uniqueItems": True})]


class Ranking(BaseModel):
    """How to rank the candidates of this request."""

    model_config = ConfigDict(extra="forbid")

    policy: str | None = Field(
        None, description="name of one of the model's policies; default: its default"
    )
    weights: dict[str, float] | None = Field(
        None, description="weights that replace those of the policy, within its bounds"
    )
    top_k: int | None = Field(None, ge=1, description="maximum length of `ranking`; default: all")
    explain: bool | None = Field(
        None, description="add an explanation: each task's share in the rank score"
    )


class ScoreRequest(BaseModel):
    """One user and n candidates."""

    model_config = ConfigDict(extra="forbid")

    user: dict[str, JsonValue] | Key | int = Field(
        {}, description="user features: name to value; or the user's key in the users table"
    )
    candidates: dict[str, list[JsonValue]] | list[dict[str, JsonValue] | Key | int] = Field(
        description="an object of columns (feature name to n values), or a list of n objects; or "
        "n keys of the items table"
    )
    candidate_keys: Keys | None = Field(
        None,
        description="n different keys, one per candidate, for `ranking`; default: the keys, if "
        "`candidates` is a list of keys and nothing else; otherwise positions from 0",
    )
    ranking: Ranking | None = None


class AppliedPolicy(BaseModel):
    """The policy of a response; fields that it does not have are absent."""

    name: str
    formula: Formula
    weights: dict[str, float] = Field(description="with those of the request")
    multiplier: str | None = Field(
        None, description="candidate feature that multiplies the product"
    )
    alpha: dict[str, float] | None = None
    beta: dict[str, float] | None = None
    expression: str | None = None
    version: str | None = Field(
        None, description="version of the server's policies file, if it has one"
    )


class Share(BaseModel):
    """One task's contribution to one candidate's rank score."""

    raw: float = Field(description="the model's score")
    calibrated: float = Field(description="the calibrated score, which was fused")
    share: float = Field(description="contribution to the candidate's total")
    lead: float = Field(description="share minus the mean share of all candidates")


class ExplainedCandidate(BaseModel):
    """Why a candidate has its rank."""

    candidate: str | int = Field(description="its key or position")
    total: float = Field(
        description="the sum that the shares add up to; candidates are ordered by it"
    )
    tasks: dict[str, Share]
    multiplier: Share | None = Field(None, description="if the policy has one")
    remainder: float | None = Field(None, description="total minus the shares, for an expression")


class Explanation(BaseModel):
    """The explained ranking: the candidates of `ranking`, at most the first 100."""

    share: str = Field(description="definition of a share")
    lead: str = Field(description="definition of a lead")
    candidates: list[ExplainedCandidate]


class UnknownKeys(BaseModel):
    """Keys that a table does not have."""

    count: int
    positions: list[int] = Field(description="of their candidates, the first 100; 0 for a user")


class ScoreResponse(BaseModel):
    """Scores in the candidates' order, and the ranking, best first."""

    model: str
    version: int
    role: str = Field(description="role of the version: active, canary, previous or shadow")
    scores: dict[str, list[float | None]] = Field(
        description="task to scores, one per candidate; null for one that was dropped, because the "
        "items table does not have its key"
    )
    rank_score: list[float | None] = Field(
        description="one fused score per candidate; higher ranks first"
    )
    ranking: list[str | int] = Field(description="candidate keys or positions, best first")
    policy: AppliedPolicy = Field(description="the policy that was applied")
    tables: dict[str, str] | None = Field(
        None, description="versions of the tables that the request took rows of"
    )
    unknown_keys: dict[str, UnknownKeys] | None = Field(
        None, description="keys that a table does not have, by items and users"
    )
    explanation: Explanation | None = Field(None, description="if the request asks for one")


class TriedPolicy(BaseModel):
    """A policy as in policies.toml."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field("default", pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")
    formula: Formula = "weighted_sum"
    weights: dict[str, float] = Field({}, description="task, or name in the expression, to weight")
    multiplier: str | None = Field(None, min_length=1, max_length=64)
    alpha: dict[str, float] | None = None
    beta: dict[str, float] | None = None
    expression: str | None = None


class RankRequest(BaseModel):
    """Scores of n candidates, and the policy that ranks them."""

    model_config = ConfigDict(extra="forbid")

    scores: dict[str, list[float]] = Field(
        description="task to scores, one per candidate, as in a score response; every task"
    )
    policy: TriedPolicy
    multiplier: list[float] | None = Field(
        None, description="values of the candidate feature that the policy multiplies by"
    )
    candidate_keys: Keys | None = Field(
        None, description="n different keys, for `ranking`; default: positions from 0"
    )
    explain: bool | None = Field(None, description="add an explanation")


class RankResponse(BaseModel):
    """The ranking by a policy that the request wrote."""

    rank_score: list[float] = Field(description="one fused score per candidate; higher ranks first")
    ranking: list[str | int] = Field(description="candidate keys or positions, best first")
    policy: AppliedPolicy
    explanation: Explanation | None = Field(None, description="if the request asks for one")
