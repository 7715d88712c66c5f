"""The policies in force: one policy set, and what it makes of each model that answers.

Owned by the event loop. A new set comes in force by one assignment; a request takes its model's
rankers once and keeps them, so each answer comes from exactly one set.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from app.artifacts.loader import Model
from app.errors import ConfigurationInvalid, PoliciesInvalid
from app.lifecycle.registry import Registry
from app.ranking.policies import LARGEST_FILE, NO_POLICIES, ModelPolicies, PolicySet
from app.telemetry.ranking import RankingMetrics

logger = logging.getLogger(__name__)


class Policies:
    """ModelPolicies by model version, compiled when first asked for and kept as long as the set is.

    Attributes:
        active: the policy set in force.
        refused: what is wrong with the file as it is now, where it is not followed.
        misfits: why the set is not followed for a model that came after it, by model name.
    """

    def __init__(self) -> None:
        """Start without a file: every model has its own policy."""
        self.active = NO_POLICIES
        self.refused: Sequence[str] = ()
        self.misfits: dict[str, str] = {}
        self._rankers: dict[tuple[str, int], ModelPolicies] = {}

    def __repr__(self) -> str:
        models = [f"{name}/{version}" for name, version in self._rankers]
        return f"<Policies {self.active.version or 'of the models'} for {models}>"

    def of(self, model: Model) -> ModelPolicies:
        """Return the rankers of a model.

        A model that came after the set, and that the set does not fit, is ranked by its own policy.
        """
        manifest = model.manifest
        rankers = self._rankers.get((manifest.name, manifest.version))
        if rankers is None:
            rankers = self._compiled(model)
            self._rankers[manifest.name, manifest.version] = rankers
        return rankers

    def activate(self, policies: PolicySet, models: Iterable[Model]) -> None:
        """Let a set come in force, if it fits the models that answer now.

        Raises:
            PoliciesInvalid: it says of one of them what that cannot do; nothing has changed.
        """
        rankers: dict[tuple[str, int], ModelPolicies] = {}
        problems: list[str] = []
        for model in models:
            traits = model.manifest.traits
            try:
                rankers[traits.name, model.manifest.version] = policies.rankers(traits)
            except PoliciesInvalid as error:
                problems += error.problems
        if problems:
            raise PoliciesInvalid(problems)
        self.active, self._rankers = policies, rankers
        self.refused, self.misfits = (), {}

    def _compiled(self, model: Model) -> ModelPolicies:
        traits = model.manifest.traits
        self.misfits.pop(traits.name, None)
        try:
            return self.active.rankers(traits)
        except PoliciesInvalid as error:
            self.misfits[traits.name] = str(error)
            logger.error("model %s has its own policy only: %s", model, error)  # noqa: TRY400
            return NO_POLICIES.rankers(traits)


class PolicyFile:
    """One file, or none; while it is wrong, the set that was in force before stays."""

    def __init__(
        self, path: Path | None, policies: Policies, registry: Registry, metrics: RankingMetrics
    ) -> None:
        """Put the file in force, if there is one; it is tried on the models of `registry`.

        Raises:
            ConfigurationInvalid: it cannot be followed.
        """
        self._path = path
        self._policies = policies
        self._registry = registry
        self._metrics = metrics
        self.load()

    @property
    def files(self) -> Sequence[Path]:
        """The file; empty where there is none."""
        return () if self._path is None else (self._path,)

    def load(self) -> None:
        """Read the file, if there is one, and put it in force, on the event loop.

        Raises:
            ConfigurationInvalid: it cannot be followed.
        """
        if self._path is None:
            return
        try:
            self.prepare()()
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
            with self._path.open("rb") as file:
                return file.read(LARGEST_FILE + 1)
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
