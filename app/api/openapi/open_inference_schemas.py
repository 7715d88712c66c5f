"""Schemas of the Open Inference Protocol's documents.

The infer route does not parse with these: `app.protocol.open_inference.inputs` checks its tensors
against the manifest.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from app.protocol.open_inference.infer import LONGEST_ID

Parameter = str | int | float | bool


class ServerLive(BaseModel):
    """Liveness; KServe's client reads it."""

    live: bool


class ServerReady(BaseModel):
    """Readiness; KServe's client reads it."""

    ready: bool


class ModelReady(BaseModel):
    """Readiness of a model."""

    name: str
    ready: bool


class ServerMetadata(BaseModel):
    """Name, version and extensions of the server."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """One input or output; -1 is the number of candidates."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """Inputs and outputs of a model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class RepositoryEntry(BaseModel):
    """A model version in the store."""

    name: str
    version: str
    state: str
    reason: str
    parameters: dict[str, str] = Field(
        default_factory=dict, description="`role`: what a loaded version does in traffic"
    )


class Duration(BaseModel):
    """A count, and the total duration."""

    count: int
    ns: int


class InferenceStatistics(BaseModel):
    """Counts and durations of requests, by result and by stage."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class ModelStatistics(BaseModel):
    """Statistics of a model version since it was loaded."""

    model_config = ConfigDict(protected_namespaces=())

    name: str
    version: str
    last_inference: int = Field(description="milliseconds since 1970; 0 before the first request")
    inference_count: int = Field(description="candidates scored")
    execution_count: int = Field(description="batches run")
    inference_stats: InferenceStatistics
    batch_stats: list[JsonValue] = Field(
        description="always empty; /metrics has a histogram of batch sizes"
    )


class Statistics(BaseModel):
    """Statistics of one model or of all models."""

    model_config = ConfigDict(protected_namespaces=())

    model_stats: list[ModelStatistics]


class RequestInput(BaseModel):
    """An input tensor with its data in JSON: flat, or nested as its shape."""

    model_config = ConfigDict(extra="forbid")

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Parameter] | None = None
    data: list[JsonValue] | None = None


class RequestOutput(BaseModel):
    """An output to return; `datatype` and `shape` are accepted and change nothing."""

    model_config = ConfigDict(extra="forbid")

    name: str
    datatype: Literal["FP32"] | None = None
    shape: list[int] | None = None
    parameters: dict[str, Parameter] | None = None


class RequestParameters(BaseModel):
    """Ranking options and request options; a weight is `weights.<task>`."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float] = Field(init=False)

    policy: str = ""
    priority: int = Field(0, ge=0, le=3, description="1 high, 2 normal, 3 low; 0 is the default")
    timeout: int = Field(0, ge=0, le=600_000_000, description="microseconds; 0 is the default")
    binary_data_output: bool = Field(False, description="whether outputs are binary by default")
    content_type: str | None = Field(None, description="accepted and ignored, except for base64")


class InferRequest(BaseModel):
    """One user and n candidates as tensors."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    id: str | None = Field(None, max_length=LONGEST_ID, description="repeated in the response")
    model_name: JsonValue = Field(None, description="ignored: the path names it")
    model_version: JsonValue = Field(None, description="ignored: the path names it")
    parameters: RequestParameters | None = None
    inputs: list[RequestInput]
    outputs: list[RequestOutput] | None = None


class ResponseOutput(BaseModel):
    """One score per candidate."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Parameter] | None = None
    data: list[float] | None = None


class InferResponse(BaseModel):
    """The requested outputs, or all."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_version: str
    parameters: dict[str, str] = Field(description="`role`: of the version in traffic")
    id: str | None = None
    outputs: list[ResponseOutput]
