"""The policies in force: one policy set, and what it makes of each model that answers.

Owned by the event loop. A new set comes in force by one assignment; a request takes its model's
rankers once and keeps them, so each answer comes from exactly one set.
"""

import logging
from collections.abc import Iterable, Sequence

from app.artifacts.loader import Model
from app.errors import PoliciesInvalid
from app.ranking.policies import NO_POLICIES, ModelPolicies, PolicySet

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
