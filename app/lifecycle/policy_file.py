"""The file of policies on behalf of a server: read at the start, and again when it changes.

What it says is known to `app.ranking.policies`. `app.server.file_watcher` follows the file: it
calls `prepare` in a thread, and what that returns on the event loop. Write the file under another
name and rename it into place: half of a file may be a shorter file that is right.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from app.errors import ConfigurationInvalid, PoliciesInvalid
from app.files import read_small_file
from app.lifecycle.policies import Policies
from app.lifecycle.registry import Registry
from app.ranking.policies import LARGEST_FILE, PolicySet
from app.telemetry.ranking import RankingMetrics

logger = logging.getLogger(__name__)


class PolicyFile:
    """One file, or none; while it is wrong, the set that was in force before stays."""

    name = "policies"

    def __init__(
        self, path: Path | None, policies: Policies, registry: Registry, metrics: RankingMetrics
    ) -> None:
        """Read nothing yet; a file is checked against the models of `registry`."""
        self._path = path
        self._policies = policies
        self._registry = registry
        self._metrics = metrics

    @property
    def files(self) -> Sequence[Path]:
        """The file; empty where there is none."""
        return () if self._path is None else (self._path,)

    def load(self) -> None:
        """Read the file, if there is one, and put it in force, on the event loop.

        Raises:
            ConfigurationInvalid: it cannot be followed.
        """
        if self._path is not None:
            self._or_invalid(self.prepare())

    def check(self) -> None:
        """Check the active set against the models that are active now.

        Raises:
            ConfigurationInvalid: it does not fit one of them.
        """
        active = self._policies.active
        self._or_invalid(lambda: self._policies.activate(active, self._registry.models()))

    def _or_invalid(self, step: Callable[[], None]) -> None:
        try:
            step()
        except PoliciesInvalid as error:
            raise ConfigurationInvalid(f"{self._path}: {error}") from error

    def prepare(self) -> Callable[[], None]:
        """Read the file, in any thread; the result, called on the loop, puts it in force.

        It raises PoliciesInvalid where the file cannot be followed.
        """
        try:
            policies = PolicySet.parse(self._read())
        except PoliciesInvalid as error:
            return partial(self._refuse, error)
        return partial(self._put_in_force, policies)

    def _read(self) -> bytes:
        assert self._path is not None
        try:
            return read_small_file(self._path, max_bytes=LARGEST_FILE)
        except OSError as error:
            raise PoliciesInvalid([f"cannot be read: {error.strerror}"]) from error

    def _put_in_force(self, policies: PolicySet) -> None:
        former = self._policies.active.version
        try:
            self._policies.activate(policies, self._registry.models())
        except PoliciesInvalid as error:
            self._refuse(error)
        if policies.version != former:
            self._metrics.followed(policies.version)
            logger.info(
                "policy set %s is in force, after %s: %s",
                policies.version,
                former or "none",
                ", ".join(sorted(policies.policies)) or "no policies",
            )

    def _refuse(self, error: PoliciesInvalid) -> NoReturn:
        self._policies.refused = tuple(error.problems)
        self._metrics.refused()
        raise error
