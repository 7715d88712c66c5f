"""What one version of a model has done since it was loaded; owned by the event loop."""

import time
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class VersionStatistics:
    """Sums over requests and batches.

    Attributes:
        succeeded: requests that were answered with scores.
        succeeded_s: from their arrival to their answers.
        failed: requests to it that were refused, or not answered.
        failed_s: from their arrival to that.
        rows: candidates of those that were answered.
        batches: that ran and did not raise.
        queue_s: that answered requests waited for a lane.
        collate_s: that went into bringing their batches together.
        compute_s: that their batches took.
        respond_s: that went into ranking and writing their answers.
        last_unix_s: when the last one was answered; 0 before the first.
    """

    succeeded: int = 0
    succeeded_s: float = 0.0
    failed: int = 0
    failed_s: float = 0.0
    rows: int = 0
    batches: int = 0
    queue_s: float = 0.0
    collate_s: float = 0.0
    compute_s: float = 0.0
    respond_s: float = 0.0
    last_unix_s: float = 0.0

    def succeed(self, rows: int, duration_s: float, stages: Mapping[str, float]) -> None:
        """Count an answered request: its candidates, all of its time, and its time by stage."""
        self.succeeded += 1
        self.succeeded_s += duration_s
        self.rows += rows
        self.queue_s += stages["queue"]
        self.collate_s += stages["collate"]
        self.compute_s += stages["compute"]
        self.respond_s += stages["rank"] + stages["respond"]
        self.last_unix_s = time.time()

    def fail(self, duration_s: float) -> None:
        """Count a request that got no scores."""
        self.failed += 1
        self.failed_s += duration_s
