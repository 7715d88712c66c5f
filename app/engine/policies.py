"""The policies in force: one policy set, and what it makes of each model that answers.

Owned by the event loop. A new set comes in force by one assignment; a request takes its model's
rankers once and keeps them, so each answer comes from exactly one set.
"""

import logging

from app.artifacts.loader import Model
from app.errors import PoliciesInvalid
from app.ranking.policies import NO_POLICIES, PolicySet, Rankers

logger = logging.getLogger(__name__)


class Policies:
    """Rankers by model version, compiled when first asked for and kept as long as the set is.

    Attributes:
        active: the policy set in force.
        misfits: why the set is not followed for a model that came after it, by model name.
    """

    def __init__(self) -> None:
        """Start without a file: every model has its own policy."""
        self.active = NO_POLICIES
        self.misfits: dict[str, str] = {}
        self._rankers: dict[tuple[str, int], Rankers] = {}

    def __repr__(self) -> str:
        models = [f"{name}/{version}" for name, version in self._rankers]
        return f"<Policies {self.active.version or 'of the models'} for {models}>"

    def of(self, model: Model) -> Rankers:
        """Return the rankers of a model.

        A model that came after the set, and that the set does not fit, is ranked by its own policy.
        """
        manifest = model.manifest
        rankers = self._rankers.get((manifest.name, manifest.version))
        if rankers is None:
            rankers = self._compiled(model)
            self._rankers[manifest.name, manifest.version] = rankers
        return rankers

    def activate(self, policies: PolicySet) -> None:
        """Let a set come in force; it has been tried on the models that answer now."""
        self.active = policies
        self.misfits = {}
        self._rankers = {}

    def _compiled(self, model: Model) -> Rankers:
        traits = model.manifest.traits
        self.misfits.pop(traits.name, None)
        try:
            return self.active.rankers(traits)
        except PoliciesInvalid as error:
            self.misfits[traits.name] = str(error)
            logger.error("model %s has its own policy only: %s", model, error)  # noqa: TRY400
            return NO_POLICIES.rankers(traits)
