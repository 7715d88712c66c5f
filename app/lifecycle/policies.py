"""Ranking policies: the active policy set, compiled for each model, and the file that it is from.

Owned by the event loop. A policy set is activated by one assignment. A request takes the policies
of its model once and keeps them, so that exactly one set ranks its answer.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from app.artifacts.loader import Model
from app.errors import ConfigurationInvalid, PoliciesInvalid
from app.files import read_small_file
from app.lifecycle.registry import Registry
from app.ranking.policies import LARGEST_FILE, NO_POLICIES, ModelPolicies, PolicySet
from app.telemetry.ranking import RankingMetrics

logger = logging.getLogger(__name__)


class Policies:
    """The active policy set, and the compiled policies of each model version.

    Policies are compiled at first use and kept as long as the set is active.

    Attributes:
        active: the active policy set.
        refused: what is wrong with the file as it is now, if it was refused.
        incompatible: why the set is not used for a version that was activated after it, by
            `name/version`.
    """

    def __init__(self) -> None:
        """Start without a policy set: every model has its own policy."""
        self.active = NO_POLICIES
        self.refused: Sequence[str] = ()
        self.incompatible: dict[str, str] = {}
        self._compiled: dict[tuple[str, int], ModelPolicies] = {}

    def __repr__(self) -> str:
        models = [f"{name}/{version}" for name, version in self._compiled]
        return f"<Policies {self.active.version or 'of the models'} for {models}>"

    def of(self, model: Model) -> ModelPolicies:
        """Return the policies of a model.

        A model that was activated after the set, and does not fit it, has only its own policy.
        """
        manifest = model.manifest
        compiled = self._compiled.get((manifest.name, manifest.version))
        if compiled is None:
            compiled = self._compile(model)
            self._compiled[manifest.name, manifest.version] = compiled
        return compiled

    def forget(self, model: Model) -> None:
        """Drop the policies of a version that is no longer loaded."""
        self._compiled.pop((model.manifest.name, model.manifest.version), None)
        self.incompatible.pop(model.label, None)

    def activate(self, policies: PolicySet, models: Iterable[Model]) -> None:
        """Activate a policy set, if it fits the active models.

        Raises:
            PoliciesInvalid: it does not fit one of them; nothing has changed.
        """
        compiled: dict[tuple[str, int], ModelPolicies] = {}
        problems: list[str] = []
        for model in models:
            traits = model.manifest.traits
            try:
                compiled[traits.name, model.manifest.version] = policies.policies_for(traits)
            except PoliciesInvalid as error:
                problems += error.problems
        if problems:
            raise PoliciesInvalid(problems)
        self.active, self._compiled = policies, compiled
        self.refused, self.incompatible = (), {}

    def _compile(self, model: Model) -> ModelPolicies:
        traits = model.manifest.traits
        self.incompatible.pop(model.label, None)
        try:
            return self.active.policies_for(traits)
        except PoliciesInvalid as error:
            self.incompatible[model.label] = str(error)
            logger.error("model %s: the policy set does not fit it: %s", model, error)  # noqa: TRY400
            return NO_POLICIES.policies_for(traits)


class PolicyFile:
    """The file of policies, if there is one. While it is wrong, the previous set stays active.

    `app.server.file_watcher` calls `prepare` in a thread when the file changes, and the result on
    the event loop. Write the file under another name and rename it into place: half of a file may
    be a valid shorter one.
    """

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
        """The file, or nothing."""
        return () if self._path is None else (self._path,)

    def load(self) -> None:
        """Read the file, if there is one, and activate its policies, on the event loop.

        Raises:
            ConfigurationInvalid: the file is wrong.
        """
        if self._path is not None:
            self._or_invalid(self.prepare())

    def check(self) -> None:
        """Check the active set against the models that are active now.

        Raises:
            ConfigurationInvalid: it does not fit one of them.
        """
        active = self._policies.active
        self._or_invalid(lambda: self._policies.activate(active, self._registry.active_models()))

    def _or_invalid(self, step: Callable[[], None]) -> None:
        try:
            step()
        except PoliciesInvalid as error:
            raise ConfigurationInvalid(f"{self._path}: {error}") from error

    def prepare(self) -> Callable[[], None]:
        """Read the file, in any thread; the result, called on the loop, activates its policies.

        Calling the result raises PoliciesInvalid if the file is wrong.
        """
        try:
            policies = PolicySet.parse(self._read())
        except PoliciesInvalid as error:
            return partial(self._refuse, error)
        return partial(self._activate, policies)

    def _read(self) -> bytes:
        assert self._path is not None
        try:
            return read_small_file(self._path, max_bytes=LARGEST_FILE)
        except OSError as error:
            raise PoliciesInvalid([f"cannot be read: {error.strerror}"]) from error

    def _activate(self, policies: PolicySet) -> None:
        former = self._policies.active.version
        try:
            self._policies.activate(policies, self._registry.active_models())
        except PoliciesInvalid as error:
            self._refuse(error)
        if policies.version != former:
            self._metrics.show_policy_set(policies.version)
            logger.info(
                "policy set %s is active, after %s: %s",
                policies.version,
                former or "none",
                ", ".join(sorted(policies.policies)) or "no policies",
            )

    def _refuse(self, error: PoliciesInvalid) -> NoReturn:
        self._policies.refused = tuple(error.problems)
        raise error
