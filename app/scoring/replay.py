"""Replay: score recorded requests with two versions, and compare scores, orders and cost.

Both versions read a request as if it had just arrived: each with its own vocabularies, defaults and
policies. Nothing here knows the server; it runs on the thread that calls it.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from app.artifacts.loader import Model
from app.artifacts.program import error_summary
from app.artifacts.traffic_log import RecordedRequest
from app.engine.batch import Chunk
from app.engine.lanes import rank, run
from app.engine.request import QueuedRequest, RequestFeatures
from app.errors import GatehouseError, InvalidRequest
from app.lifecycle.traffic import ReplaySettings
from app.protocol.dialect import ParseContext
from app.protocol.native import read_request
from app.ranking.agreement import compare_orders
from app.ranking.batch import RankedRequest
from app.ranking.policies import ModelPolicies
from app.ranking.ranker import RankingOptions

RANK_SCORE = "rank score"
MIN_REQUESTS = 30
"""With fewer requests that both versions score, a comparison means nothing."""
_MOST_CANDIDATES = 65536
_MOST_KEPT = 200_000  # scores of a task, for a plot
_WARM_UP_RUNS = 3  # the TorchScript executor profiles, then compiles, then runs

Numbers = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """A recorded request, scored by one version; `cpu_s` is the time in the model."""

    rows: int
    ranked: RankedRequest
    cpu_s: float


@dataclass(slots=True, eq=False)
class Contender:
    """A version, with the policies that rank its scores.

    Attributes:
        model: the version.
        policies: of that version.
        label: names it in the report; by default `name/version`.
        is_warm: whether it has scored a request.
    """

    model: Model
    policies: ModelPolicies
    label: str = ""
    is_warm: bool = False

    def __post_init__(self) -> None:
        if not self.label:
            self.label = self.model.label

    def read(self, document: dict[str, Any]) -> tuple[RequestFeatures, RankingOptions]:
        """Return a recorded request's features and ranking options.

        Where the request names a policy or weights that do not exist any more, the default policy
        ranks.

        Raises:
            GatehouseError: this version does not accept the request.
        """
        context = ParseContext(self.model, self.policies, {}, _MOST_CANDIDATES)
        try:
            features, ranking, _ = read_request(document, context)
        except InvalidRequest as error:
            if not all(problem.pointer.startswith("/ranking") for problem in error.problems):
                raise
            without = {name: value for name, value in document.items() if name != "ranking"}
            features, ranking, _ = read_request(without, context)
        return features, ranking

    def answer(self, document: dict[str, Any]) -> Scored | str:
        """Score a recorded request on this thread, alone; or return why that is not possible."""
        try:
            features, ranking = self.read(document)
        except GatehouseError as error:
            return str(error)
        request = QueuedRequest(self.model, features, ranking)
        chunks = [Chunk(request, features, 0, features.rows)]
        for _ in range(0 if self.is_warm else _WARM_UP_RUNS):
            run(self.model, chunks)
        self.is_warm = True
        began = time.thread_time()
        result = run(self.model, chunks)
        cpu_s = time.thread_time() - began
        if isinstance(result.scores, Exception):
            return error_summary(result.scores)
        rank(chunks, result)
        ranked = result.ranked[0] if result.ranked else None
        if ranked is None:
            return "a score is NaN or infinite"
        return Scored(features.rows, ranked, cpu_s)


class Agreement(NamedTuple):
    """How far two versions agree on one task, or on the rank score.

    Attributes:
        name: of the task.
        mean: of the scores of the first version.
        other_mean: of the second one.
        kendall_tau: mean over requests, -1 to 1; None without a request of two candidates.
        top_10_overlap: mean share of the 10 best candidates in common.
        max_difference: largest difference of a candidate's scores.
    """

    name: str
    mean: float
    other_mean: float
    kendall_tau: float | None
    top_10_overlap: float
    max_difference: float

    @property
    def mean_ratio(self) -> float:
        """The mean of the second version as a multiple of the first one's."""
        if self.mean == self.other_mean:
            return 1.0
        return self.other_mean / self.mean if self.mean else float("inf")


@dataclass(slots=True, eq=False)
class _Comparison:
    """Sums over requests for one task."""

    name: str
    rows: int = 0
    requests: int = 0
    total: float = 0.0
    other_total: float = 0.0
    taus: list[float] = field(default_factory=list)
    overlap: float = 0.0
    largest: float = 0.0
    kept: list[tuple[Numbers, Numbers]] = field(default_factory=list)

    def add(
        self,
        scores: Numbers,
        others: Numbers,
        keys: Numbers | None = None,
        other_keys: Numbers | None = None,
    ) -> None:
        """Add the scores of one request `[n]`; the keys order its candidates, by default they."""
        n = len(scores)
        self.requests += 1
        self.total += float(scores.sum(dtype=np.float64))
        self.other_total += float(others.sum(dtype=np.float64))
        difference = np.abs(scores.astype(np.float64) - others)
        self.largest = max(self.largest, float(difference.max()))
        if self.rows < _MOST_KEPT:
            self.kept.append((scores, others))
        self.rows += n
        before, after = (
            scores if keys is None else keys,
            others if other_keys is None else other_keys,
        )
        tau, overlap = compare_orders(before.astype(np.float64), after.astype(np.float64))
        if tau is not None:
            self.taus.append(tau)
        self.overlap += overlap

    def agreement(self) -> Agreement:
        rows, requests = max(1, self.rows), max(1, self.requests)
        return Agreement(
            self.name,
            self.total / rows,
            self.other_total / rows,
            float(np.mean(self.taus)) if self.taus else None,
            self.overlap / requests,
            self.largest,
        )


@dataclass(frozen=True, slots=True, eq=False)
class ReplayReport:
    """The comparison of two versions on recorded requests.

    Attributes:
        before: label of the first version, `name/version`.
        after: label of the second one.
        requests: that both scored.
        rows: their candidates.
        unusable: requests that the first version does not accept: they say nothing.
        refused: requests that only the second one does not accept, or fails on.
        reason: why it did so first.
        tasks: the tasks that both have, then the rank score.
        missing: tasks that only one of them has.
        cpu_us: CPU time of the first version per candidate (µs).
        other_cpu_us: of the second one.
        scores: of both versions, by task, for a plot.
        taus: Kendall's τ of the rank scores, one per request.
    """

    before: str
    after: str
    requests: int
    rows: int
    unusable: int
    refused: int
    reason: str
    tasks: Sequence[Agreement]
    missing: Sequence[str]
    cpu_us: float
    other_cpu_us: float
    scores: dict[str, tuple[Numbers, Numbers]]
    taus: Sequence[float]

    @property
    def rank_score(self) -> Agreement:
        """The agreement on the rank score."""
        return self.tasks[-1]

    @property
    def refused_ratio(self) -> float:
        """The share of the requests that the second version does not score."""
        return self.refused / max(1, self.requests + self.refused)

    @property
    def cpu_ratio(self) -> float:
        """The CPU time per candidate of the second version, as a multiple."""
        return self.other_cpu_us / self.cpu_us if self.cpu_us else 1.0

    def __str__(self) -> str:
        rank_score = self.rank_score
        tau = "-" if rank_score.kendall_tau is None else f"{rank_score.kendall_tau:.3f}"
        means = ", ".join(f"{task.name} {task.mean_ratio:.3f}" for task in self.tasks[:-1])
        return (
            f"{self.requests} recorded requests, {self.refused} refused; Kendall tau {tau}, "
            f"top 10 overlap {rank_score.top_10_overlap:.3f}, means x {means}, "
            f"CPU x {self.cpu_ratio:.2f}, against {self.before}"
        )

    def failures(self, gates: ReplaySettings) -> list[str]:
        """Return which gates fail, each with its figure."""
        failed = []
        if self.refused_ratio > gates.error_ratio:
            failed.append(
                f"error_ratio: {self.refused_ratio:.4f}, at most {gates.error_ratio:g} is allowed: "
                f"{self.reason}"
            )
        if not self.requests:
            return failed
        tau, best = self.rank_score.kendall_tau, self.rank_score.top_10_overlap
        if gates.kendall_tau is not None and tau is not None and tau < gates.kendall_tau:
            failed.append(f"kendall_tau: {tau:.3f}, at least {gates.kendall_tau:g} is required")
        if gates.top_10_overlap is not None and best < gates.top_10_overlap:
            failed.append(
                f"top_10_overlap: {best:.3f}, at least {gates.top_10_overlap:g} is required"
            )
        for task in self.tasks[:-1] if gates.mean_ratio is not None else ():
            assert gates.mean_ratio is not None
            if not 1 / gates.mean_ratio <= task.mean_ratio <= gates.mean_ratio:
                failed.append(
                    f"mean_ratio: {task.mean_ratio:.3f} of {task.name}, allowed are "
                    f"{1 / gates.mean_ratio:.3f} to {gates.mean_ratio:g}"
                )
        if gates.cpu_ratio is not None and self.cpu_ratio > gates.cpu_ratio:
            failed.append(f"cpu_ratio: {self.cpu_ratio:.2f}, allowed {gates.cpu_ratio:g}")
        return failed


def replay(
    recorded: Iterable[RecordedRequest],
    before: Contender,
    after: Contender,
    *,
    most_requests: int,
    keep_scores: bool = False,
) -> ReplayReport:
    """Score recorded requests with two versions and compare them.

    Args:
        recorded: the requests; only as many as needed are read.
        before: the version that the other one is compared with.
        after: the version on trial.
        most_requests: how many requests are replayed.
        keep_scores: whether the report has scores and τ for a plot.
    """
    own, others = before.model.manifest.task_columns, after.model.manifest.task_columns
    common = [task for task in own if task in others]
    comparisons = {name: _Comparison(name) for name in (*common, RANK_SCORE)}
    unusable = refused = rows = 0
    reason = ""
    cpu_s = other_cpu_s = 0.0
    for number, request in enumerate(islice(recorded, most_requests)):
        first, second = _answers(request.document, before, after, is_odd=number % 2 == 1)
        if isinstance(first, str):
            unusable += 1
            continue
        if isinstance(second, str):
            refused += 1
            reason = reason or second
            continue
        rows += first.rows
        cpu_s += first.cpu_s
        other_cpu_s += second.cpu_s
        one, other = first.ranked, second.ranked
        for task in common:
            comparisons[task].add(one.scores[:, own[task]], other.scores[:, others[task]])
        comparisons[RANK_SCORE].add(
            one.rank_score, other.rank_score, one.sort_keys, other.sort_keys
        )
    per_row = 1e6 / max(1, rows)
    return ReplayReport(
        before.label,
        after.label,
        comparisons[RANK_SCORE].requests,
        rows,
        unusable,
        refused,
        reason,
        [comparison.agreement() for comparison in comparisons.values()],
        sorted(own.keys() ^ others.keys()),
        cpu_s * per_row,
        other_cpu_s * per_row,
        {name: _joined(comparison.kept) for name, comparison in comparisons.items()}
        if keep_scores
        else {},
        comparisons[RANK_SCORE].taus if keep_scores else (),
    )


def _answers(
    document: dict[str, Any], before: Contender, after: Contender, *, is_odd: bool
) -> tuple[Scored | str, Scored | str]:
    """Return both answers. The one that runs second finds warm caches, so they take turns."""
    if is_odd:
        second = after.answer(document)
        return before.answer(document), second
    return before.answer(document), after.answer(document)


def _joined(pairs: Sequence[tuple[Numbers, Numbers]]) -> tuple[Numbers, Numbers]:
    if not pairs:
        return np.empty(0, np.float32), np.empty(0, np.float32)
    return np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs])
