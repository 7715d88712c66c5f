"""The documents of the Open Inference Protocol, for OpenAPI.

The infer route does not parse with these: its tensors are checked against a model's manifest, by
`app.protocol.open_inference.inputs`.
"""

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Parameter = str | int | float | bool


class ServerMetadata(BaseModel):
    """Who answers, and which of the protocol's extensions it has."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """One input or output; -1 is the number of candidates."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class RepositoryEntry(BaseModel):
    """A version of a model that is in the store."""

    name: str
    version: str
    state: str
    reason: str


class Duration(BaseModel):
    """How often, and how long in all."""

    count: int
    ns: int


class InferenceStatistics(BaseModel):
    """Where the time of requests went."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class ModelStatistics(BaseModel):
    """What a version of a model has done since it was loaded."""

    model_config = ConfigDict(protected_namespaces=())

    name: str
    version: str
    last_inference: int = Field(description="ms since 1970; 0 before the first")
    inference_count: int = Field(description="candidates scored")
    execution_count: int = Field(description="batches run")
    inference_stats: InferenceStatistics
    batch_stats: list[JsonValue] = Field(description="not kept; /metrics has a histogram")


class Statistics(BaseModel):
    """The statistics of one model or of all."""

    model_config = ConfigDict(protected_namespaces=())

    model_stats: list[ModelStatistics]


class RequestInput(BaseModel):
    """A tensor, here with its data in JSON, flat or nested as its shape."""

    model_config = ConfigDict(extra="forbid")

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Parameter] | None = None
    data: list[JsonValue] | None = None


class RequestOutput(BaseModel):
    """An output that is wanted."""

    model_config = ConfigDict(extra="forbid")

    name: str
    parameters: dict[str, Parameter] | None = None


class RequestParameters(BaseModel):
    """How to rank, and on what terms; a weight is `weights.<task>`."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float] = Field(init=False)

    policy: str = ""
    priority: int = Field(0, ge=0, le=3, description="1 high, 2 normal, 3 low; 0 the default")
    timeout: int = Field(0, ge=0, le=600_000_000, description="µs; 0 the default")
    binary_data_output: bool = Field(False, description="whether outputs are binary by default")


class InferRequest(BaseModel):
    """One user and n candidates as tensors."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    id: str | None = None
    model_name: JsonValue = Field(None, description="not looked at: the path says it")
    model_version: JsonValue = Field(None, description="not looked at: the path says it")
    parameters: RequestParameters | None = None
    inputs: list[RequestInput]
    outputs: list[RequestOutput] | None = None


class ResponseOutput(BaseModel):
    """One score a candidate."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Parameter] | None = None
    data: list[float] | None = None


class InferAnswer(BaseModel):
    """The outputs that were asked for, or all."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[ResponseOutput]
