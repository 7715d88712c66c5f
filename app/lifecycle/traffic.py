"""`<store>/<model>/traffic.toml`: which versions of a model serve.

    active = "latest"    # the newest good version, or a number: 7
    keep = 1             # previous versions that stay loaded, for an instant rollback
    previous = 6         # written by `gatehouse activate`: where `gatehouse rollback` goes

    [canary]
    version = 8
    share = 0.05         # of the requests, by a stable hash of a key (see `Canary`)
    for = "30m"          # then it becomes active, unless a gate fails
    key = "user_id"      # user feature that is hashed; by default, the one with the most ids

    [canary.gates]       # each compares the canary with the active version; all are optional
    error_ratio = 0.001  # failed share of the canary, less that of the active version, at most
    p99_ratio = 1.2      # 99th percentile of the latency, as a multiple of the active version's
    kendall_tau = 0.8    # mean agreement of the two orders of the same candidates, at least

    [shadow]
    version = 9
    share = 0.1          # of the requests, which it scores after they are answered

    [replay]             # a new version must pass these gates on recorded traffic before it serves
    requests = 200       # the newest ones are scored by the new version and by the active one
    error_ratio = 0.0    # share of them that the new version refuses or fails on, at most
    kendall_tau = 0.8    # mean agreement of the orders, at least
    top_10_overlap = 0.7 # mean share of the 10 best candidates in common, at least
    mean_ratio = 1.2     # of each task's mean score, between 1 / 1.2 and 1.2
    cpu_ratio = 1.5      # CPU time per candidate, as a multiple of the active version's, at most

`accept_incompatible = 8` lets version 8 serve although it does not accept the active version's
example request, or the policies file does not fit it; `true` lets every version. `[replay]` and
this check are for versions above the active one: a return to an older version is never refused by
them.

Without a file, `active` is "latest" and `keep` is 1. A file applies as a whole or not at all.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app import file_problems
from app.artifacts.store import LARGEST_VERSION
from app.errors import ConfigurationInvalid
from app.files import parse_toml, read_small_file

TRAFFIC = "traffic.toml"
MAX_FILE_BYTES = 64 * 1024
MAX_KEEP = 16


_DURATION = r"^[1-9][0-9]{0,5}[smhd]$"
_PATTERNS = {_DURATION: 'must be a number and s, m, h or d, such as "30m"'}


class Gates(BaseModel):
    """What a canary must keep to; see the example above."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    error_ratio: float | None = Field(default=None, ge=0, le=1)
    p99_ratio: float | None = Field(default=None, gt=0, le=1000)
    kendall_tau: float | None = Field(default=None, ge=-1, le=1)


class CanarySettings(BaseModel):
    """A version that gets a share of the traffic for a while; see the example above."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True
    )

    version: int = Field(ge=1, le=LARGEST_VERSION)
    share: float = Field(gt=0, le=1)
    for_: str = Field(alias="for", pattern=_DURATION)
    key: str | None = Field(default=None, min_length=1, max_length=256)
    gates: Gates = Gates()

    @property
    def seconds(self) -> float:
        """How long it runs."""
        return int(self.for_[:-1]) * {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}[self.for_[-1]]


class ShadowSettings(BaseModel):
    """A version that scores requests without answering them; see the example above."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    version: int = Field(ge=1, le=LARGEST_VERSION)
    share: float = Field(gt=0, le=1)


class ReplaySettings(BaseModel):
    """What a new version must keep to on recorded traffic; see the example above."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    requests: int = Field(default=200, ge=1, le=10_000)
    error_ratio: float = Field(default=0.0, ge=0, le=1)
    kendall_tau: float | None = Field(default=None, ge=-1, le=1)
    top_10_overlap: float | None = Field(default=None, ge=0, le=1)
    mean_ratio: float | None = Field(default=None, ge=1, le=1000)
    cpu_ratio: float | None = Field(default=None, gt=0, le=1000)


class Traffic(BaseModel):
    """What a traffic file says.

    Attributes:
        active: the version that answers, or "latest".
        keep: how many previous versions stay loaded.
        previous: the version that a rollback returns to; None for the next lower one.
        canary: the version that gets a share of the traffic.
        shadow: the version that scores a share of it without answering.
        replay: the gates that a new version must pass on recorded traffic.
        accept_incompatible: whether a new version may serve that does not accept the requests or
            the policies of the active one; a number means that version, and those after it
            instead of one before it.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    active: Literal["latest"] | int = "latest"
    keep: int = Field(default=1, ge=0, le=MAX_KEEP)
    previous: int | None = Field(default=None, ge=1, le=LARGEST_VERSION)
    accept_incompatible: bool | Annotated[int, Field(ge=1, le=LARGEST_VERSION)] = False
    canary: CanarySettings | None = None
    shadow: ShadowSettings | None = None
    replay: ReplaySettings | None = None

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Read a file's content.

        Raises:
            ConfigurationInvalid: with every problem.
        """
        try:
            document = parse_toml(content)
        except ValueError as error:  # both what is not UTF-8 and what is not TOML
            raise ConfigurationInvalid(f"not valid TOML: {error}") from error
        return cls.of(document)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """Read a parsed document.

        Raises:
            ConfigurationInvalid: with every problem.
        """
        problems = _active_problem(document)
        try:
            traffic = cls.model_validate(document)
        except ValidationError as error:
            others = file_problems.problems(error, cls, document, _PATTERNS)
            problems += [problem for problem in others if not problem.startswith("active: ")]
        if problems:
            raise ConfigurationInvalid("; ".join(problems))
        return traffic

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the traffic file in a model's folder; the defaults if there is none.

        Raises:
            ConfigurationInvalid: the file cannot be used.
            OSError: it cannot be read now.
        """
        try:
            content = read_small_file(folder / TRAFFIC, max_bytes=MAX_FILE_BYTES)
        except FileNotFoundError:
            return cls()
        return cls.parse(content)

    def accepts_incompatible(self, version: int, before: int) -> bool:
        """Whether a version need not accept what callers send to an older one, `before`."""
        given = self.accept_incompatible
        return given is True or before < given <= version

    def to_toml(self) -> str:
        """Return the file's content."""
        document = self.model_dump(exclude_none=True, by_alias=True)
        if self.accept_incompatible is False:
            del document["accept_incompatible"]
        return _toml(document)

    def write(self, folder: Path) -> None:
        """Replace the traffic file in a model's folder: readers see the old or the new one.

        Raises:
            OSError: it cannot be written; the old file stays.
        """
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=f".{TRAFFIC}-")
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(self.to_toml())
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)  # the server may run as another user
            temporary.replace(folder / TRAFFIC)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _active_problem(document: Mapping[str, Any]) -> list[str]:
    """Check `active` here: pydantic would report each of its two types."""
    active = document.get("active", "latest")
    is_number = isinstance(active, int) and not isinstance(active, bool)
    if active == "latest" or (is_number and 1 <= active <= LARGEST_VERSION):
        return []
    return ['active: must be "latest" or a version number, such as 7']


def _toml(document: Mapping[str, Any], table: str = "") -> str:
    """Write numbers, strings, and tables of them as TOML."""
    lines = [
        f"{key} = {json.dumps(value)}"
        for key, value in document.items()
        if not isinstance(value, dict)
    ]
    content = "".join(f"{line}\n" for line in lines)
    for key, value in document.items():
        if isinstance(value, dict):
            name = f"{table}{key}"
            content += f"\n[{name}]\n{_toml(value, f'{name}.')}"
    return content
