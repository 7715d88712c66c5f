"""A comparison of two versions on the same requests: one answers, the other scores them, too."""

from dataclasses import dataclass, field

from app.artifacts.loader import Model


@dataclass(slots=True, eq=False)
class Comparison:
    """Compares a version with the one that answers; owned by the event loop.

    Attributes:
        live: the version that answers.
        other: the version that scores the same requests afterwards.
        share: of the requests, which is compared at most.
        role: of the version that is on trial: `shadow` (the other) or `canary` (the live one).
        compared: how many requests both have scored.
        dropped: how many were not compared, because the lanes had other work.
        failed: how many the other version could not score.
        tau_sum: sum of Kendall's τ of the two orders.
        overlap_sum: sum of the overlap of the two times 10 best candidates, 0 to 1 each.
        difference_sums: sum of the mean absolute difference of the scores, by task.
    """

    live: Model
    other: Model
    share: float
    role: str
    compared: int = 0
    dropped: int = 0
    failed: int = 0
    tau_sum: float = 0.0
    overlap_sum: float = 0.0
    difference_sums: dict[str, float] = field(default_factory=dict)
    _credit: float = 0.0

    def takes_next(self) -> bool:
        """Whether the next request belongs to the share: evenly spread."""
        self._credit += self.share
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True

    def add(self, tau: float, overlap: float, differences: dict[str, float]) -> None:
        """Count a request that both versions have scored."""
        self.compared += 1
        self.tau_sum += tau
        self.overlap_sum += overlap
        for task, difference in differences.items():
            self.difference_sums[task] = self.difference_sums.get(task, 0.0) + difference

    @property
    def kendall_tau(self) -> float | None:
        """The mean of Kendall's τ, or None without a comparison."""
        return self.tau_sum / self.compared if self.compared else None
