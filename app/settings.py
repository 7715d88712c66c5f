"""Every knob of the service, once: type, default, range, unit, and one line of help.

A knob is set by a flag of `gatehouse serve` (`--max-batch-rows 256`) or by an environment variable
(`GATEHOUSE_MAX_BATCH_ROWS=256`); the flag wins.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, CliSuppress, SettingsConfigDict


class Settings(BaseSettings):
    """Serve the newest good version of every model in the store."""

    model_config = SettingsConfigDict(
        env_prefix="GATEHOUSE_", frozen=True, extra="forbid", hide_input_in_errors=True
    )

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one")
    processes: int = Field(
        1, ge=1, le=64, description="complete copies of the service on one port; limits are of each"
    )
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="TCP port for /metrics, of the first process; the others' follow it",
    )
    store: Path = Field(
        Path("store"), description="folder of artifacts, <store>/<model>/<version>/"
    )
    store_poll_s: float = Field(
        5.0,
        gt=0,
        le=3600,
        description="how often the store, secrets and policies are looked at (s)",
    )
    policies: Path | None = Field(
        None, description="file of ranking policies, TOML; read again when it changes"
    )
    default_model: str | None = Field(
        None, description="model that answers /v1/score; not needed where only one is active"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where models run; auto is cuda where there is one"
    )
    lanes: int | None = Field(
        None, ge=1, le=256, description="worker threads; by default one a core on CPU, two on GPU"
    )
    # On a CPU core a row of the reference model (BENCHMARKS.md) takes 150 µs alone and 12 µs in a
    # batch of 500, and who comes just after such a batch began waits 6 ms for it.
    max_batch_rows: int = Field(
        512, ge=1, le=65536, description="the most candidates in one batch (rows)"
    )
    # The knee of that curve: in batches of 64 a row costs a quarter more than in batches of 512.
    min_chunk_rows: int = Field(
        64, ge=1, le=65536, description="a large request is not split below this (rows)"
    )
    # While lanes are busy, batches fill by themselves; while one is idle, waiting is only late.
    max_wait_ms: float = Field(
        0.0, ge=0, le=1000, description="how long an idle lane waits for company for a row (ms)"
    )
    # About what two cores score within the default deadline; the forecast refuses earlier where
    # models are slower, and this bounds memory where there is no deadline to speak of.
    max_queue_rows: int = Field(
        32768,
        ge=1,
        description="of a model, more waiting candidates than this are refused with 429 (rows)",
    )
    max_candidates: int = Field(4096, ge=1, description="the most candidates in one request (rows)")
    max_body_bytes: int = Field(16 << 20, ge=1024, description="the largest request body (bytes)")
    max_bodies_bytes: int = Field(
        128 << 20,
        ge=1024,
        description="more bytes of bodies than this on their way are refused with 429 (bytes)",
    )
    body_timeout_ms: float = Field(
        5000.0, gt=0, description="how long a body may take to arrive (ms)"
    )
    # A ranking that takes longer than a second is of no use to a page; callers state their own.
    request_timeout_ms: float = Field(
        1000.0, gt=0, le=600_000, description="deadline of requests that state none (ms)"
    )
    keep_alive_s: int = Field(
        75, ge=1, description="how long an idle connection is kept; above the caller's own (s)"
    )
    drain_delay_s: float = Field(
        0.0, ge=0, le=600, description="after SIGTERM, how long to serve on while not ready (s)"
    )
    drain_timeout_s: int = Field(
        30, ge=1, le=3600, description="after that, how long requests may take to finish (s)"
    )
    lane_hang_s: float = Field(
        30.0, gt=0, description="a lane busy with one batch for longer is not alive (s)"
    )
    keys_file: Path | None = Field(
        None, description="file of bearer keys, name:secret, to score with; read again on change"
    )
    keys: CliSuppress[SecretStr | None] = Field(
        None, description="the same, separated by commas; as a variable only, never as a flag"
    )
    tls_cert: Path | None = Field(
        None, description="PEM file of a certificate's chain: serve HTTPS; read again on change"
    )
    tls_key: Path | None = Field(
        None, description="PEM file of its private key, where the chain's file has none"
    )
    cors_origins: str = Field(
        "", description="origins whose web pages may call, separated by commas; none by default"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="the least severe log record that is written"
    )
    log_sample: float = Field(
        0.01,
        ge=0,
        le=1,
        description="share of answers that are logged; slow ones and server errors always are",
    )
    slow_request_ms: float = Field(
        100.0, ge=0, description="a request slower than this is always logged (ms)"
    )

    @property
    def scheme(self) -> str:
        """The scheme of the service's URLs."""
        return "https" if self.tls_cert else "http"

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        if self.max_candidates > self.max_queue_rows:
            raise ValueError("max_candidates must not be above max_queue_rows")
        if self.max_body_bytes > self.max_bodies_bytes:
            raise ValueError("max_body_bytes must not be above max_bodies_bytes")
        if self.min_chunk_rows > self.max_batch_rows:
            raise ValueError("min_chunk_rows must not be above max_batch_rows")
        return self

    @model_validator(mode="after")
    def _ports_agree(self) -> Self:
        if self.metrics_port is None:
            if self.processes > 1:
                raise ValueError("more than one of processes needs metrics_port: none sees all")
        elif self.metrics_port:
            last = self.metrics_port + self.processes - 1
            if last > 65535 or self.metrics_port <= self.port <= last:
                raise ValueError("metrics_port and those that follow it must be free of port")
        return self

    @model_validator(mode="after")
    def _secrets_agree(self) -> Self:
        if self.keys is not None and self.keys_file is not None:
            raise ValueError("keys and keys_file must not both be set")
        if self.tls_key is not None and self.tls_cert is None:
            raise ValueError("tls_key must not be set without tls_cert")
        return self
