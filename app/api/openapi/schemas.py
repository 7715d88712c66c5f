"""The native API's documents, for OpenAPI and for `/v1/models`.

The score route does not parse with these: its features are checked against a model's manifest, by
`app.protocol.features`. A test holds both against each other.
"""

from collections.abc import Mapping
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from app.artifacts.manifest import Input, Precision, TaskOutput
from app.ranking.policy import Formula, Policy


class Ranking(BaseModel):
    """How this request's scores are fused and cut."""

    model_config = ConfigDict(extra="forbid")

    policy: str | None = Field(None, description="name of a policy of the model; default: its own")
    weights: dict[str, float] | None = Field(
        None, description="weights instead of the policy's, within its bounds"
    )
    top_k: int | None = Field(None, ge=1, description="length of `ranking` at most; default: all")
    explain: bool | None = Field(None, description="tell each task's share in the order")


class ScoreRequest(BaseModel):
    """One user and n candidates."""

    model_config = ConfigDict(extra="forbid")

    user: dict[str, JsonValue] = Field({}, description="the user's features, name to value")
    candidates: dict[str, list[JsonValue]] | list[dict[str, JsonValue]] = Field(
        description="columns, feature name to n values; or a list of n objects"
    )
    candidate_keys: list[str | int] | None = Field(
        None, description="n names to be used in `ranking`; default: positions from 0"
    )
    ranking: Ranking | None = None


class AppliedPolicy(BaseModel):
    """The policy of an answer; what it does not have is left out."""

    name: str
    formula: Formula
    weights: dict[str, float] = Field(description="the request's own included")
    multiplier: str | None = Field(None, description="candidate feature that the product takes too")
    alpha: dict[str, float] | None = None
    beta: dict[str, float] | None = None
    expression: str | None = None
    version: str | None = Field(
        None, description="of the server's set of policies, where it has one"
    )


class Share(BaseModel):
    """One task's part in one candidate's place."""

    raw: float = Field(description="the model's score")
    calibrated: float = Field(description="what was fused")
    share: float = Field(description="of the candidate's total")
    lead: float = Field(description="share less the mean share of all candidates")


class ExplainedCandidate(BaseModel):
    """Why a candidate stands where it does."""

    candidate: str | int = Field(description="its key or position")
    total: float = Field(description="what the shares are of; the candidates are ordered by it")
    tasks: dict[str, Share]
    multiplier: Share | None = Field(None, description="where the policy has one")
    remainder: float | None = Field(None, description="what an expression's shares leave of it")


class Explanation(BaseModel):
    """The order, explained: the best candidates, best first, as many as `ranking` has up to 100."""

    share: str = Field(description="what a share is, in words")
    lead: str = Field(description="what a lead is, in words")
    candidates: list[ExplainedCandidate]


class ScoreAnswer(BaseModel):
    """Scores in the candidates' order, and the ranking, best first."""

    model: str
    version: int
    scores: dict[str, list[float]] = Field(description="per task, one score a candidate")
    rank_score: list[float] = Field(description="one fused score a candidate; higher is better")
    ranking: list[str | int] = Field(description="candidate keys or positions, best first")
    policy: AppliedPolicy = Field(description="what was applied")
    explanation: Explanation | None = Field(None, description="where the request asks for one")


class FieldErrorSchema(BaseModel):
    """One thing that is wrong, and where: an RFC 6901 pointer into the request."""

    pointer: str
    detail: str


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str | None = None
    instance: str = Field(description="the request's id")
    errors: list[FieldErrorSchema] | None = None


class OfferedPolicy(AppliedPolicy):
    """A policy that a request may pick by its name."""

    weights: dict[str, float]
    bounds: dict[str, tuple[float, float]] = Field(
        description="weights that a request may set, lowest and highest; others it may not"
    )
    shadow: str | None = Field(None, description="policy that is compared with it")


class PolicyState(BaseModel):
    """The server's file of policies."""

    version: str | None = Field(description="of the set in force; null without a file")
    refused: list[str] = Field(
        description="what is wrong with the file as it is now; then the set before stays in force"
    )


class ModelCard(BaseModel):
    """What an active model takes, gives and is known to be worth."""

    name: str
    version: int
    architecture: str
    created: datetime
    device: str
    inputs: tuple[Input, ...]
    tasks: tuple[TaskOutput, ...]
    ranking: Policy = Field(description="the policy that the model brought")
    default_policy: str = Field(description="of requests that pick none")
    policies: list[OfferedPolicy]
    calibrations: dict[str, str] = Field(description="task to method, where there is one")
    policy_problem: str | None = Field(
        description="why the server's policies are not followed for this model"
    )
    precision: Precision
    evaluation: Mapping[str, Mapping[str, float | None]]
    score_url: str
    example_request: dict[str, JsonValue] = Field(description="works as it is, posted to score_url")


class RefusedArtifact(BaseModel):
    """A version in the store that cannot be served, and why."""

    model: str
    version: int
    reason: str


class IgnoredFolder(BaseModel):
    """A folder in the store that is not an artifact, or cannot be read."""

    folder: str = Field(description="its path in the store")
    reason: str


class ModelList(BaseModel):
    """Every active model, and every refused version."""

    models: list[ModelCard]
    refused: list[RefusedArtifact]
    ignored: list[IgnoredFolder]
    policies: PolicyState
