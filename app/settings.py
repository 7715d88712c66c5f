"""Every setting of the service, once: type, default, range, unit, and one line of help.

A setting is an option of `gatehouse serve` (`--max-batch-rows 256`) or an environment variable
(`GATEHOUSE_MAX_BATCH_ROWS=256`); the option wins. An empty variable counts as unset. For some
settings it is an error, because unset is less safe: `GATEHOUSE_HOST=` would listen on every
address, and without keys or a certificate every client could score.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args

from annotated_types import Ge, Gt, Le
from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from app.errors import nearest

PREFIX = "GATEHOUSE_"

NEVER_EMPTY = frozenset({"host", "keys", "keys_file", "tls_cert", "tls_key"})
"""Settings whose variable must not be empty."""

_MAY_BE_EMPTY = frozenset({"cors_origins"})  # an empty list is a value

# Variables that Kubernetes sets in every pod for a service called `gatehouse` or `gatehouse-…`.
# They are recognised by name; GATEHOUSE_PORT=tcp://10.0.0.1:80 and GATEHOUSE_METRICS_PORT by their
# value.
_LINK_NAME = re.compile(
    r"\w+_SERVICE_HOST|\w+_SERVICE_PORT(_\w+)?|\w+_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?"
)
_LINK_URL = re.compile(r"(tcp|udp|sctp)://\S+")


class Settings(BaseSettings):
    """Serve the newest valid version of every model in the store."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True
    )

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="TCP port to listen on; 0 picks a free one")
    processes: int = Field(
        1, ge=1, le=64, description="copies of the service that share the port; limits are per copy"
    )
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="TCP port for /metrics, which has the series of all processes; unset: /metrics "
        "is on the service's port",
    )
    store: Path = Field(
        Path("store"), description="folder of artifacts, <store>/<model>/<version>/"
    )
    model_name: str | None = Field(
        None,
        description="name to serve a single model under, if the store is a model's or a version's "
        "folder, as KServe mounts it; unset: the model's own name",
    )
    store_poll_s: float = Field(
        5.0,
        gt=0,
        le=3600,
        description="how often the store, keys, certificate and policies are checked for changes "
        "(s)",
    )
    policies: Path | None = Field(
        None,
        description="TOML file of ranking policies, reloaded when it changes; unset: policies.toml "
        "beside the store, if it exists at start",
    )
    default_model: str | None = Field(
        None, description="model of /v1/score; needed when several models are active"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where models run; auto is cuda if it is available"
    )
    gpu_table_bytes: int = Field(
        0,
        ge=0,
        description="GPU memory for copies of item tables, so that requests of keys are gathered "
        "there; 0: tables stay in the host's memory (bytes)",
    )
    lanes: int | None = Field(
        None,
        ge=1,
        le=256,
        description="worker threads that run batches; unset: one per CPU core, two on a GPU",
    )
    # On a CPU core a row of the reference model (BENCHMARKS.md) takes 150 µs alone and 12 µs in a
    # batch of 500. A request that arrives just after such a batch began waits 6 ms for it.
    max_batch_rows: int = Field(512, ge=1, le=65536, description="size of the largest batch (rows)")
    # The knee of that curve: in batches of 64 a row costs a quarter more than in batches of 512.
    min_chunk_rows: int = Field(
        64, ge=1, le=65536, description="a large request is not split into smaller chunks (rows)"
    )
    # While lanes are busy, batches fill by themselves; while one is idle, waiting adds latency.
    max_wait_ms: float = Field(
        0.0, ge=0, le=1000, description="how long an idle lane waits for more rows (ms)"
    )
    # About what two cores score within the default deadline. Slower models are protected earlier
    # by admission; this limit bounds memory where deadlines are long.
    max_queue_rows: int = Field(
        32768,
        ge=1,
        description="length of each model's queue; a request beyond it is refused with 429 (rows)",
    )
    max_candidates: int = Field(4096, ge=1, description="most candidates in one request (rows)")
    max_body_bytes: int = Field(16 << 20, ge=1024, description="largest request body (bytes)")
    max_bodies_bytes: int = Field(
        128 << 20,
        ge=1024,
        description="all request bodies together; a request beyond it is refused with 429 (bytes)",
    )
    body_timeout_ms: float = Field(
        5000.0, gt=0, description="how long a request body may take to arrive (ms)"
    )
    # A page cannot use a ranking that takes longer than a second; clients set their own deadlines.
    request_timeout_ms: float = Field(
        1000.0, gt=0, le=600_000, description="deadline of a request that does not set one (ms)"
    )
    keep_alive_s: int = Field(
        75, ge=1, description="how long an idle connection stays open; longer than clients' own (s)"
    )
    drain_delay_s: float = Field(
        0.0,
        ge=0,
        le=600,
        description="after SIGTERM, how long to keep serving while not ready (s)",
    )
    drain_timeout_s: int = Field(
        30, ge=1, le=3600, description="then, how long requests may take to finish (s)"
    )
    lane_hang_s: float = Field(
        30.0, gt=0, description="a lane that runs one batch for longer fails /livez (s)"
    )
    keys_file: Path | None = Field(
        None,
        description="file of API keys, one name:secret a line, a secret of 20 to 256 characters; "
        "reloaded when it changes",
    )
    keys: SecretStr | None = Field(
        None,
        description="API keys, name:secret, separated by commas, a secret of 20 to 256 characters; "
        "a variable only, no option",
    )
    tls_cert: Path | None = Field(
        None, description="PEM file of a certificate chain: serve HTTPS; reloaded when it changes"
    )
    tls_key: Path | None = Field(
        None, description="PEM file of the private key, if it is not in the chain's file"
    )
    cors_origins: str = Field(
        "", description="origins whose web pages may call, separated by commas; empty: none"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe level that is logged"
    )
    log_sample: float = Field(
        0.01,
        ge=0,
        le=1,
        description="share of requests that are logged; slow ones and server errors always are",
    )
    slow_request_ms: float = Field(
        100.0, ge=0, description="a request slower than this is always logged (ms)"
    )

    record: Path | None = Field(
        None,
        description="folder for a sample of the requests and their scores, as Parquet files; it "
        "contains feature values; unset: nothing is recorded",
    )
    record_share: float = Field(
        0.01, ge=0, le=1, description="share of requests that are recorded, at random"
    )
    record_ids: Literal["none", "random"] = Field(
        "none",
        description="id of each recorded request, so that outcomes can be joined to it: random is "
        "also the response's x-record-id",
    )
    record_max_bytes: int = Field(
        1 << 30,
        ge=1 << 20,
        description="all recorded files together; the oldest are removed (bytes)",
    )

    @property
    def scheme(self) -> str:
        """The scheme of the service's URLs."""
        return "https" if self.tls_cert else "http"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments, then variables; no files of variables or secrets."""
        return init_settings, _Environment(settings_cls)

    @field_validator("*", mode="before")
    @classmethod
    def _is_not_empty(cls, value: object, info: ValidationInfo) -> object:
        if _is_empty(value) and info.field_name not in _MAY_BE_EMPTY:
            raise ValueError("must not be empty")
        return value

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        for low, high in (
            ("max_candidates", "max_queue_rows"),
            ("max_body_bytes", "max_bodies_bytes"),
            ("min_chunk_rows", "max_batch_rows"),
        ):
            if getattr(self, low) > getattr(self, high):
                values = f"{getattr(self, low)} > {getattr(self, high)}"
                raise ValueError(f"{low} must not be above {high} ({values})")
        return self

    @model_validator(mode="after")
    def _ports_agree(self) -> Self:
        if self.metrics_port and self.metrics_port == self.port:
            raise ValueError(f"metrics_port must not be port ({self.port})")
        return self

    @model_validator(mode="after")
    def _secrets_agree(self) -> Self:
        if self.keys is not None and self.keys_file is not None:
            raise ValueError("keys and keys_file must not both be set")
        if self.tls_key is not None and self.tls_cert is None:
            raise ValueError("tls_key must not be set without tls_cert")
        return self


class _Environment(PydanticBaseSettingsSource):
    """The environment variables of settings, without empty ones and Kubernetes service links."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        """Return the value of a setting's variable, or None; names stay as they are."""
        return variable(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the values of all settings that have a variable."""
        found = {name: variable(name) for name in self.settings_cls.model_fields}
        return {name: value for name, value in found.items() if value is not None}


def variable(name: str) -> str | None:
    """Return the value of a setting's variable, or None if it counts as unset."""
    value = {variable.upper(): text for variable, text in os.environ.items()}.get(
        variable_name(name)
    )
    if value is None or _is_service_link(variable_name(name), value):
        return None
    return None if _is_empty(value) and name not in NEVER_EMPTY else value


def variable_name(name: str) -> str:
    """Return the name of a setting's variable."""
    return f"{PREFIX}{name.upper()}"


def variable_warnings(environment: Mapping[str, str]) -> list[str]:
    """Return a line for each unknown `GATEHOUSE_…` variable, and one for all service links.

    No line repeats a value: it could be a secret.
    """
    links, warnings = [], []
    for name in sorted(environment):
        setting = name.upper().removeprefix(PREFIX)
        if not name.upper().startswith(PREFIX):
            continue
        if _is_service_link(name.upper(), environment[name]):
            links.append(name)
        elif setting.lower() not in Settings.model_fields:
            meant = nearest(setting.lower(), Settings.model_fields)
            hint = "" if meant is None else f"; did you mean {variable_name(meant)}?"
            warnings.append(f"unknown environment variable {name} is ignored{hint}")
    if links:
        warnings.append(
            f"ignoring variables of a Kubernetes service: {', '.join(links)} "
            "(enableServiceLinks: false in the pod's spec prevents them)"
        )
    return warnings


def rule(name: str) -> str:
    """Return the values that a setting accepts, such as `an integer between 0 and 65535`."""
    field = Settings.model_fields[name]
    kinds = set(get_args(field.annotation)) or {field.annotation}
    if not kinds & {int, float, Path, str, SecretStr}:
        return f"one of {', '.join(get_args(field.annotation))}"
    if not kinds & {int, float}:
        return "a path" if Path in kinds else "a text"
    what = "an integer" if int in kinds else "a number"
    low = next((bound for bound in field.metadata if isinstance(bound, Ge | Gt)), None)
    high = next((bound.le for bound in field.metadata if isinstance(bound, Le)), None)
    if isinstance(low, Ge):
        return (
            f"{what} of {low.ge} or more" if high is None else f"{what} between {low.ge} and {high}"
        )
    above = "" if low is None else f" above {low.gt}"
    return f"{what}{above}" if high is None else f"{what}{above} and at most {high}"


def _is_service_link(name: str, value: str) -> bool:
    if name.endswith("_PORT") and _LINK_URL.fullmatch(value):
        return True
    return _LINK_NAME.fullmatch(name) is not None


def _is_empty(value: object) -> bool:
    return isinstance(value, str) and not value.strip()
