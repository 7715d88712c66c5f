"""A ranker: a policy compiled for one model; turns raw scores into sort keys and rank scores.

A ranker is built once, when a policy or a model is loaded, so that a request costs arithmetic only.
It is immutable: a request that has started with a ranker ends with it, even after a reload.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from app.errors import did_you_mean
from app.ranking.calibration import NO_CALIBRATION, Calibration, NoCalibration
from app.ranking.formulas import Formula, Numbers, Scores, SortKeys, compile_formula, logs
from app.ranking.policy import Interval, Policy

_UNSTABLE_SORT_FROM = 128  # rows from which NumPy's unstable sort plus a check for ties is faster

NO_CALIBRATIONS: Mapping[str, Calibration] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class Ranker:
    """A policy for the K tasks of a model.

    Attributes:
        policy: the policy that is applied, including the request's own weights.
        tasks: the model's tasks, in the order of the score columns.
        calibrations: one for each task, in the same order.
        formula: the policy's formula, compiled.
        adjustable: the weights that a request may set, each with its bounds.
        description: the policy as a response describes it.
        is_calibrated: whether any task has a calibration that changes its scores.
        version: version of the policy set; empty if there is no policies file.
        shadow: another policy for the same scores, to be compared with this one.
    """

    policy: Policy
    tasks: tuple[str, ...]
    calibrations: tuple[Calibration, ...]
    formula: Formula
    adjustable: Mapping[str, Interval]
    description: dict[str, object]
    is_calibrated: bool
    version: str = ""
    shadow: "Ranker | None" = None

    @classmethod
    def of(
        cls,
        policy: Policy,
        tasks: Sequence[str],
        calibrations: Mapping[str, Calibration] = NO_CALIBRATIONS,
        *,
        version: str = "",
        shadow: "Ranker | None" = None,
    ) -> "Ranker":
        """Compile a policy for a model's tasks. Tasks that `calibrations` lacks are not calibrated.

        Raises:
            ValueError: the policy reads a task that the model does not have.
        """
        names = tuple(tasks)
        ordered = tuple(calibrations.get(task, NO_CALIBRATION) for task in names)
        if unknown := sorted(policy.tasks - set(names)):
            nearest = did_you_mean(unknown[0], names)
            raise ValueError(f'unknown task "{unknown[0]}"{nearest} (known: {", ".join(names)})')
        return cls(
            policy=policy,
            tasks=names,
            calibrations=ordered,
            formula=compile_formula(policy, names),
            adjustable=MappingProxyType(policy.adjustable(names)),
            description=_description(policy, version),
            is_calibrated=not all(isinstance(one, NoCalibration) for one in ordered),
            version=version,
            shadow=shadow,
        )

    def reweighted(self, overrides: Mapping[str, float]) -> "Ranker":
        """Return a ranker with some weights replaced. The caller checks bounds.

        It has no shadow, because a comparison with one request's own weights would not compare
        two policies.
        """
        return Ranker.of(
            self.policy.reweighted(overrides),
            self.tasks,
            dict(zip(self.tasks, self.calibrations, strict=True)),
            version=self.version,
        )

    def calibrated(self, scores: Scores) -> Numbers:
        """Return `[n, K]`: float64, or `scores` itself if no task is calibrated."""
        if not self.is_calibrated:
            return scores
        columns = [calibration(scores[:, k]) for k, calibration in enumerate(self.calibrations)]
        return np.stack(columns, axis=1)

    def sort_keys(self, scores: Scores, multiplier: Numbers | None = None) -> SortKeys:
        """Return the sort key of each candidate, `[n]` float64, finite; higher ranks first.

        Args:
            scores: `[n, K]` float32, the model's output, one column for each task.
            multiplier: `[n]`, the candidate feature that the policy's `multiplier` names.
        """
        sort_keys = self.formula.sort_keys(self.calibrated(scores))
        return sort_keys if multiplier is None else sort_keys + logs(multiplier)

    def rank_scores(self, sort_keys: SortKeys) -> Scores:
        """Return the rank scores, `[n]` float32, finite, in the order of the sort keys."""
        return self.formula.rank_scores(sort_keys)


@dataclass(frozen=True, slots=True)
class RankingOptions:
    """How the candidates of a request are ranked.

    Attributes:
        ranker: the policy, including the request's own weights.
        top_k: the largest length of the ranking; None ranks all candidates.
        explain: whether the response explains the ranking.
    """

    ranker: Ranker
    top_k: int | None = None
    explain: bool = False


def order(sort_keys: SortKeys, top_k: int | None = None) -> npt.NDArray[np.intp]:
    """Return candidate indices, best first; ties keep the order of the request."""
    keys = -sort_keys
    if len(keys) >= _UNSTABLE_SORT_FROM:
        # Without ties every sort is stable, and NumPy's vectorised unstable sort is faster.
        ranking = np.argsort(keys)
        in_order = keys[ranking]
        if not (in_order[1:] == in_order[:-1]).any():
            return ranking[:top_k]
    return np.argsort(keys, kind="stable")[:top_k]


def _description(policy: Policy, version: str) -> dict[str, object]:
    fields = policy.model_dump(exclude={"bounds", "models", "shadow"})
    return fields | {"version": version} if version else fields
