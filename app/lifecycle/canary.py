"""A canary: a version that answers a share of the traffic, until it is promoted or ended.

Which requests it gets depends on a stable hash of a key, so that a user stays with one version. The
gates compare the canary with the active version over the same time.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from hashlib import blake2b
from typing import Literal, NamedTuple

import numpy as np

from app.artifacts.inputs import IdInput
from app.artifacts.loader import Model
from app.lifecycle.comparison import Comparison
from app.lifecycle.traffic import CanarySettings

MIN_REQUESTS = 100
"""So many requests each version needs before its errors or its latency are compared."""
MIN_COMPARISONS = 30
"""So many requests both versions must have scored before their orders are compared."""
_KEPT = 20_000  # durations
_REPEATED_TEST_LEVEL = 1e-4
"""A gate fails if the figures have a smaller p-value than this; it is evaluated many times."""
_FINAL_TEST_LEVEL = 0.01
"""The same at the end, when it is evaluated once more."""
_MIN_USERS = 1000
"""A user feature with fewer ids, such as a country, is not the user's id."""

State = Literal["running", "promoted", "ended"]


class _Figures:
    """What is known about the requests that one version answered."""

    def __init__(self) -> None:
        self.requests = 0
        self.failed = 0
        self.durations: deque[float] = deque(maxlen=_KEPT)

    def add(self, status: int, duration_s: float) -> None:
        self.requests += 1
        if status >= 500 or status == 422:
            self.failed += 1
        else:
            self.durations.append(duration_s)

    @property
    def failed_ratio(self) -> float:
        return self.failed / max(1, self.requests)

    @property
    def p99_s(self) -> float:
        return float(np.quantile(self.durations, 0.99)) if self.durations else 0.0


class CanaryReport(NamedTuple):
    """The figures of a canary and of the active version since it began."""

    running_s: float
    requests: int
    failed: int
    p99_ms: float
    active_requests: int
    active_failed: int
    active_p99_ms: float
    compared: int
    kendall_tau: float | None

    def __str__(self) -> str:
        tau = "" if self.kendall_tau is None else f"; Kendall tau {self.kendall_tau:.3f}"
        return (
            f"{self.requests} requests, {self.failed} failed, p99 {self.p99_ms:.1f} ms; active: "
            f"{self.active_requests} requests, {self.active_failed} failed, "
            f"p99 {self.active_p99_ms:.1f} ms{tau}; {self.running_s:.0f} s"
        )


class Canary:
    """One canary of one active version; owned by the event loop.

    Attributes:
        settings: what the traffic file says.
        state: whether it still gets traffic, and if not, how it ended.
        reason: why it was ended, or what it waits for.
        comparison: of the canary with the active version, if a gate needs it.
        key_feature: the user feature that identifies the user, or an empty string.
    """

    def __init__(
        self,
        settings: CanarySettings,
        active: Model,
        model: Model,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin now; `clock` counts seconds."""
        self.settings = settings
        self._versions: tuple[Model, Model] | None = (active, model)
        self.state: State = "running"
        self.reason = ""
        self.key_feature = settings.key or _user_id(active)
        needed = settings.gates.kendall_tau is not None
        self.comparison = Comparison(model, active, 1.0, "canary") if needed else None
        self._clock = clock
        self._began = clock()
        self._salt = model.label.encode()[:64]
        self._below = int(settings.share * 2**64)
        self._active_figures, self._figures = _Figures(), _Figures()
        self._final: CanaryReport | None = None

    @property
    def active(self) -> Model:
        """The version that it is compared with; only until it is closed."""
        assert self._versions is not None
        return self._versions[0]

    @property
    def model(self) -> Model:
        """The canary's version; only until it is closed."""
        assert self._versions is not None
        return self._versions[1]

    def close(self) -> None:
        """Let go of both versions and keep the figures: the versions may be freed."""
        self._final = self.report()
        self._versions = self.comparison = None
        self._figures.durations.clear()
        self._active_figures.durations.clear()

    def takes(self, key: bytes) -> bool:
        """Whether the requests with this key go to the canary."""
        digest = blake2b(key, digest_size=8, key=self._salt).digest()
        return int.from_bytes(digest, "little") < self._below

    def observe(self, model: Model, status: int, duration_s: float) -> None:
        """Count a request that one of the two versions answered."""
        if model is self.model:
            self._figures.add(status, duration_s)
        elif model is self.active:
            self._active_figures.add(status, duration_s)

    def report(self) -> CanaryReport:
        """Return the figures."""
        if self._final is not None:
            return self._final
        canary, active = self._figures, self._active_figures
        return CanaryReport(
            self._clock() - self._began,
            canary.requests,
            canary.failed,
            canary.p99_s * 1e3,
            active.requests,
            active.failed,
            active.p99_s * 1e3,
            0 if self.comparison is None else self.comparison.compared,
            None if self.comparison is None else self.comparison.kendall_tau,
        )

    def evaluate(self) -> None:
        """End the canary if a gate fails; promote it when its time is over."""
        if self.state != "running":
            return
        is_over = self._clock() - self._began >= self.settings.seconds
        failure = self._failure(_FINAL_TEST_LEVEL if is_over else _REPEATED_TEST_LEVEL)
        if failure:
            self.state, self.reason = "ended", failure
        elif is_over:
            self.reason = self._missing()
            if not self.reason:
                self.state = "promoted"

    def _failure(self, level: float) -> str:
        """Return which gate fails, or an empty string."""
        gates, canary, active = self.settings.gates, self._figures, self._active_figures
        if gates.error_ratio is not None and canary.requests >= MIN_REQUESTS:
            allowed = active.failed_ratio + gates.error_ratio
            if binomial_p_value(canary.failed, canary.requests, allowed) < level:
                return (
                    f"error_ratio: {canary.failed_ratio:.4f}, allowed {allowed:.4f} "
                    f"(active {active.failed_ratio:.4f} + {gates.error_ratio:g})"
                )
        enough = min(len(canary.durations), len(active.durations)) >= MIN_REQUESTS
        if gates.p99_ratio is not None and enough:
            limit_s = active.p99_s * gates.p99_ratio
            slower = sum(1 for duration_s in canary.durations if duration_s > limit_s)
            if binomial_p_value(slower, len(canary.durations), 0.01) < level:
                ratio = canary.p99_s / active.p99_s
                return f"p99_ratio: {ratio:.2f}, allowed {gates.p99_ratio:g}"
        tau = None
        if self.comparison is not None and self.comparison.compared >= MIN_COMPARISONS:
            tau = self.comparison.kendall_tau
        if gates.kendall_tau is not None and tau is not None and tau < gates.kendall_tau:
            return f"kendall_tau: {tau:.3f}, at least {gates.kendall_tau:g} is required"
        return ""

    def _missing(self) -> str:
        """Return what the gates need to pass, or an empty string."""
        canary, active = self._figures, self._active_figures
        if canary.requests < MIN_REQUESTS:
            return f"waiting for {MIN_REQUESTS} requests to the canary, {canary.requests} so far"
        if self.settings.gates.p99_ratio is not None:
            answered = min(len(canary.durations), len(active.durations))
            if answered < MIN_REQUESTS:
                return f"waiting for {MIN_REQUESTS} answers of both versions, {answered} so far"
        if self.comparison is not None and self.comparison.compared < MIN_COMPARISONS:
            return f"waiting for {MIN_COMPARISONS} comparisons, {self.comparison.compared} so far"
        return ""


def binomial_p_value(successes: int, trials: int, probability: float) -> float:
    """Return the probability of at least so many successes: the one-sided binomial test."""
    if successes <= trials * probability or probability >= 1:
        return 1.0
    if probability <= 0:
        return 0.0
    log_p, log_q = math.log(probability), math.log1p(-probability)
    total = 0.0
    for k in range(successes, trials + 1):
        log_term = (
            math.lgamma(trials + 1)
            - math.lgamma(k + 1)
            - math.lgamma(trials - k + 1)
            + k * log_p
            + (trials - k) * log_q
        )
        term = math.exp(log_term)
        total += term
        if term < total * 1e-12:  # terms above the mean fall geometrically
            break
    return min(1.0, total)


def _user_id(model: Model) -> str:
    """Return the user feature with the most ids, if it has enough of them to identify a user."""
    ids = [feature for feature in model.manifest.user_inputs if isinstance(feature, IdInput)]
    if not ids:
        return ""
    largest = max(ids, key=lambda feature: feature.vocabulary_size)
    return largest.name if largest.vocabulary_size >= _MIN_USERS else ""
