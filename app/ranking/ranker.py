"""A ranker: a policy made ready for one model's scores; raw scores in, sort_keys and an order out.

It is built once, when a policy or a model arrives, so that a request pays for arithmetic only. It
is immutable: whoever took one answers by it, whatever is loaded meanwhile.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from app.ranking.calibration import UNCALIBRATED, Calibration, Uncalibrated
from app.ranking.formulas import Formula, Numbers, Scores, SortKeys, compiled, logs
from app.ranking.policy import Interval, Policy

_MANY = 128

NO_CALIBRATIONS: Mapping[str, Calibration] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class Ranker:
    """A policy for the K tasks of a model.

    Attributes:
        policy: what is applied, a request's own weights included.
        tasks: the model's tasks, in the order of the score columns.
        calibrations: one a task, in that order.
        formula: the policy's formula, compiled.
        adjustable: the weights that a request may set, each with its bounds.
        echo: what an answer says of the policy.
        is_calibrated: whether any task has a calibration that changes its scores.
        version: of the set of policies that it comes from; empty where the model brought it.
        shadow: another policy for the same scores, to be compared with this one.
    """

    policy: Policy
    tasks: tuple[str, ...]
    calibrations: tuple[Calibration, ...]
    formula: Formula
    adjustable: Mapping[str, Interval]
    echo: dict[str, object]
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
        """Compile a policy for a model's tasks; a task without a calibration has `none`.

        Raises:
            ValueError: the policy reads a task that is not among them.
        """
        names = tuple(tasks)
        each = tuple(calibrations.get(task, UNCALIBRATED) for task in names)
        if strangers := sorted(policy.tasks - set(names)):
            raise ValueError(f"there is no task {strangers[0]!r}")
        return cls(
            policy=policy,
            tasks=names,
            calibrations=each,
            formula=compiled(policy, names),
            adjustable=MappingProxyType(policy.adjustable(names)),
            echo=_echo(policy, version),
            is_calibrated=not all(isinstance(one, Uncalibrated) for one in each),
            version=version,
            shadow=shadow,
        )

    def reweighted(self, overrides: Mapping[str, float]) -> "Ranker":
        """Return this ranker with some weights replaced; bounds are the caller's to keep.

        It has no shadow: one caller's own weights say nothing of how two policies agree.
        """
        return Ranker.of(
            self.policy.reweighted(overrides),
            self.tasks,
            dict(zip(self.tasks, self.calibrations, strict=True)),
            version=self.version,
        )

    def calibrated(self, scores: Scores) -> Numbers:
        """Return `[n, K]`: the scores themselves where no task has a calibration, else float64."""
        if not self.is_calibrated:
            return scores
        columns = [each(scores[:, k]) for k, each in enumerate(self.calibrations)]
        return np.stack(columns, axis=1)

    def sort_keys(self, scores: Scores, multiplier: Numbers | None = None) -> SortKeys:
        """Return what the candidates are ordered by, `[n]` float64, finite; higher ranks first.

        Args:
            scores: `[n, K]` float32 as the model gave them, one column a task.
            multiplier: `[n]`, the values of the feature that the policy's `multiplier` names.
        """
        sort_keys = self.formula.sort_keys(self.calibrated(scores))
        return sort_keys if multiplier is None else sort_keys + logs(multiplier)

    def rank_scores(self, sort_keys: SortKeys) -> Scores:
        """Return the rank score of each candidate, `[n]` float32: finite, in the order of merit."""
        return self.formula.rank_scores(sort_keys)


@dataclass(frozen=True, slots=True)
class RankingOptions:
    """How a request wants its candidates ranked.

    Attributes:
        ranker: by which policy, the request's own weights included.
        top_k: how long the ranking is at most; None means whole.
        explain: whether the order is to be explained.
    """

    ranker: Ranker
    top_k: int | None = None
    explain: bool = False


def order(sort_keys: SortKeys, top_k: int | None = None) -> npt.NDArray[np.intp]:
    """Return candidate positions, best first; ties keep the order in which they were sent."""
    keys = -sort_keys
    if len(keys) >= _MANY:  # without ties any sort is stable, and NumPy's vectorised one is faster
        found = np.argsort(keys)
        in_order = keys[found]
        if not (in_order[1:] == in_order[:-1]).any():
            return found[:top_k]
    return np.argsort(keys, kind="stable")[:top_k]


def _echo(policy: Policy, version: str) -> dict[str, object]:
    said = policy.model_dump(exclude={"bounds", "models", "shadow"})
    return said | {"version": version} if version else said
