"""Schemas of `/v1/models`: the state of each model, and what was refused."""

from collections.abc import Mapping
from datetime import datetime

from pydantic import BaseModel, Field, JsonValue

from app.api.openapi.score_schemas import AppliedPolicy
from app.artifacts.inputs import Input
from app.artifacts.manifest import Precision, TaskOutput
from app.ranking.policy import Policy


class OfferedPolicy(AppliedPolicy):
    """A policy that a request may pick by name."""

    weights: dict[str, float]
    bounds: dict[str, tuple[float, float]] = Field(
        description="weights that a request may set: lowest and highest value"
    )
    shadow: str | None = Field(
        None, description="policy that is compared with it in the background"
    )


class PolicyState(BaseModel):
    """The state of the server's policies file."""

    version: str | None = Field(description="version of the active policies; null without a file")
    refused: list[str] = Field(
        description="problems of the file as it is now; the previous policies stay active"
    )


class GateLevelUse(BaseModel):
    """What the gates of one level choose."""

    gates: list[str]
    experts: list[str]
    weights: list[list[float | None]] | None = Field(
        description="gate by gate, the mean weight of each expert; null for an expert that the "
        "gate does not see; all null before the first sampled request"
    )


class GateUse(BaseModel):
    """What the gates of a version choose, over a sample of its recent requests."""

    requests: int = Field(description="recent requests that were sampled, one a second at most")
    levels: list[GateLevelUse]


class GoldenCheck(BaseModel):
    """How close a version's outputs were to its golden examples when it was loaded."""

    examples: int = Field(description="golden requests")
    largest_difference: float = Field(
        description="largest |y - g| / (1 + |g|) of an output y and its golden value g"
    )
    tolerance: float = Field(description="the most that it may be on this device")


class LoadedVersion(BaseModel):
    """A loaded version of a model. It answers requests that name it."""

    version: int
    role: str = Field(
        description="active: answers requests that name no version; canary: answers a share of "
        "them; previous: was active before, and is kept for a rollback; shadow: scores requests "
        "without answering them"
    )
    created: datetime
    architecture: str
    precision: Precision
    golden: GoldenCheck
    evaluation: Mapping[str, Mapping[str, float | None]]
    gates: GateUse | None = Field(description="null for a model without gates")
    score_url: str
    problem: str | None = Field(
        description="what is wrong with its files in the store, so that it could not be loaded "
        "again; null if they are intact"
    )
    replay: str | None = Field(
        description="figures of the replay of recorded traffic that it has passed, or why there "
        "was none; null if none was asked for"
    )


class CanaryState(BaseModel):
    """A version that gets a share of the traffic, and how it goes."""

    version: int
    share: float
    state: str = Field(description="running, promoted, or ended by a gate")
    reason: str = Field(description="which gate ended it, or what it waits for")
    running_s: float
    requests: int
    failed: int
    p99_ms: float
    active_requests: int
    active_failed: int
    active_p99_ms: float
    compared: int = Field(description="requests that both versions have scored")
    kendall_tau: float | None = Field(description="mean agreement of their orders, -1 to 1")


class ShadowState(BaseModel):
    """A version that scores requests without answering them, and how far it differs."""

    version: int
    share: float
    compared: int
    dropped: int = Field(description="not compared, because lanes had other work")
    failed: int
    kendall_tau: float | None = Field(description="mean agreement of the orders, -1 to 1")
    top_10_overlap: float | None = Field(description="mean share of the 10 best in common")
    score_difference: dict[str, float] = Field(
        description="task to mean absolute difference of the scores"
    )


class TrafficState(BaseModel):
    """What the model's traffic.toml says, as it was last valid."""

    active: int | str = Field(description="the version that should be active, or latest")
    keep: int = Field(description="how many previous versions stay loaded")
    canary: CanaryState | None = Field(description="null without a canary that has begun")
    shadow: ShadowState | None = Field(description="null without a shadow that is loaded")
    problems: list[str] = Field(
        description="why the file cannot be used, or a version in it is not active"
    )


class FoldState(BaseModel):
    """The folded rows of an items table: what the first layers of one version make of an item."""

    version: int = Field(description="the version whose program it was made with")
    bytes_per_item: int = Field(description="that it takes beside the features")
    serves: bool = Field(description="whether requests of keys only are scored from it")
    problem: str | None = Field(description="why it does not serve; null if it does")


class TableState(BaseModel):
    """A table of items or users that the model serves from: requests may send its keys."""

    table: str = Field(description="items or users")
    version: str = Field(description="the table's version and, after a dot, its last delta")
    key: str = Field(description="the name of the key in requests")
    key_type: str = Field(description="int64 or string")
    unknown: str = Field(
        description="what happens to an unknown key: error refuses the request, default gives the "
        "candidate the defaults of the features, drop does not score it"
    )
    rows: int
    bytes: int
    columns: list[str] = Field(description="the features that it has")
    created: datetime = Field(description="when its newest data was published")
    max_age_s: float | None = Field(
        description="age of the newest data from which on the model is not ready"
    )
    problem: str | None = Field(
        description="what is wrong with its files in the store; null if they are intact"
    )
    folded: FoldState | None = Field(description="null for a table that is not folded")


class DriftState(BaseModel):
    """How far recent requests are from the training data: population stability indices.

    0 is no change, 0.1 a moderate one, 0.25 a large one. Figures appear after 200 sampled requests.
    """

    features: dict[str, float]
    scores: dict[str, float] = Field(description="by task")


class ModelCard(BaseModel):
    """An active model: inputs, tasks, policies and evaluation."""

    name: str
    version: int
    not_ready: str | None = Field(
        description="why requests should go to another replica: a table is older than its "
        "max_age_s; null if the model is ready"
    )
    versions: list[LoadedVersion] = Field(description="the loaded versions, the newest first")
    traffic: TrafficState
    architecture: str
    created: datetime
    device: str
    inputs: tuple[Input, ...]
    tasks: tuple[TaskOutput, ...]
    ranking: Policy = Field(description="the policy in the model's artifact")
    default_policy: str = Field(description="name of the policy for requests that pick none")
    policies: list[OfferedPolicy]
    calibrations: dict[str, str] = Field(description="task to method, for calibrated tasks")
    policy_problem: str | None = Field(
        description="why the server's policies do not apply to this model"
    )
    precision: Precision
    evaluation: Mapping[str, Mapping[str, float | None]]
    tables: list[TableState] = Field(description="the tables that it serves from")
    drift: DriftState | None = Field(
        description="null if the artifact has no distributions of the training data"
    )
    score_url: str
    example_request: dict[str, JsonValue] = Field(
        description="a valid request; POST it to score_url"
    )


class RefusedArtifact(BaseModel):
    """A version in the store that cannot be served, and why."""

    model: str
    version: int
    reason: str


class RefusedTable(BaseModel):
    """A table or a delta in the store that cannot be used, and why."""

    model: str
    table: str = Field(description="its place, such as items/3, or items/3.2 for a delta")
    reason: str


class IgnoredFolder(BaseModel):
    """A folder in the store that is not an artifact, or cannot be read."""

    folder: str = Field(description="its path in the store")
    reason: str


class ModelList(BaseModel):
    """Active models and refused versions."""

    models: list[ModelCard]
    refused: list[RefusedArtifact]
    ignored: list[IgnoredFolder]
    refused_tables: list[RefusedTable]
    policies: PolicyState
