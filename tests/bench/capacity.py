"""Calculate replicas, network and cost for a load: `python -m tests.bench.capacity`.

Prints the tables of docker/CAPACITY.md. The inputs are measured: CPU time of the server's processes
for a request of the reference model, from the first page of BENCHMARKS.md; sizes of bodies, and
memory. Give your own with the options; `python -m tests.bench.hot_path` measures them.
"""

import argparse
from dataclasses import dataclass, replace
from math import ceil

BUSY_SHARE = 0.7
"""The share of the time that replicas should be busy; autoscaling aims at it."""
USD_PER_CORE_HOUR = 0.04
"""An assumption: about the list price of a virtual core on demand."""
RESPONSE_BYTES = 42
"""For each candidate with three tasks, a rank score and a short key."""


@dataclass(frozen=True, slots=True)
class Request:
    """A kind of request and what it costs.

    Attributes:
        format: how it is written.
        rows: its candidates.
        cpu_us: CPU time of all processes of the server for it, at 32 connections (µs).
        model_us: of that, the model in the lanes (µs).
        body_bytes: its size.
    """

    format: str
    rows: int
    cpu_us: float
    model_us: float
    body_bytes: int

    @property
    def rows_per_core(self) -> float:
        """Candidates a second that one busy core scores."""
        return self.rows / self.cpu_us * 1e6

    @property
    def loop_us(self) -> float:
        """CPU time of the event loop (µs), at most: some of it is the lanes' and the kernel's."""
        return self.cpu_us - self.model_us

    @property
    def loop_lanes(self) -> float:
        """How many lanes one event loop can feed, at least."""
        return self.model_us / self.loop_us


MEASURED = (
    Request("JSON", 500, 5474, 3127, 445_000),
    Request("V2 binary", 500, 3945, 3127, 200_000),
    Request("JSON", 50, 591, 313, 44_500),
    Request("V2 binary", 50, 557, 313, 20_000),
    Request("JSON", 1, 75, 16, 900),
)
LOADS = (1_000_000, 100_000_000)


@dataclass(frozen=True, slots=True)
class Fleet:
    """What carries a load of one kind of request.

    Attributes:
        request: the kind.
        load: candidates a second.
        cores: of one replica.
        usd: price of a core for an hour.
    """

    request: Request
    load: float
    cores: int = 2
    usd: float = USD_PER_CORE_HOUR

    @property
    def requests(self) -> float:
        """Requests a second."""
        return self.load / self.request.rows

    @property
    def busy_cores(self) -> float:
        """Cores that are busy all the time."""
        return self.requests * self.request.cpu_us / 1e6

    @property
    def replicas(self) -> int:
        """Replicas, so that cores and event loops are busy for `BUSY_SHARE` of the time at most."""
        busy_loops = self.requests * self.request.loop_us / 1e6
        return ceil(max(self.busy_cores / self.cores, busy_loops) / BUSY_SHARE)

    @property
    def gbit_in(self) -> float:
        """Network into the fleet (Gbit/s)."""
        return self.requests * self.request.body_bytes * 8 / 1e9

    @property
    def gbit_out(self) -> float:
        """Network out of the fleet (Gbit/s)."""
        return self.load * RESPONSE_BYTES * 8 / 1e9

    @property
    def usd_per_hour(self) -> float:
        """What the cores of all replicas cost in an hour."""
        return self.replicas * self.cores * self.usd

    @property
    def usd_per_million(self) -> float:
        """What a million candidates cost."""
        return self.usd_per_hour / 3600 / self.load * 1e6


def per_core() -> str:
    """Return the table of what one core does."""
    lines = [
        "| candidates | format | CPU µs a request | candidates/s a core | lanes a loop can feed |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {request.rows} | {request.format} | {request.cpu_us:,.0f} "
        f"| {request.rows_per_core:,.0f} | {request.loop_lanes:.1f} |"
        for request in MEASURED
    ]
    return "\n".join(lines)


def fleets(cores: int = 2, usd: float = USD_PER_CORE_HOUR) -> str:
    """Return the table of the fleets for both loads."""
    lines = [
        "| candidates/s | candidates | format | requests/s | busy cores | replicas | Gbit/s in "
        "| Gbit/s out | USD/h | USD a million |",
        "| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for load in LOADS:
        for request in MEASURED:
            fleet = Fleet(request, load, cores, usd)
            lines.append(
                f"| {load:,} | {request.rows} | {request.format} | {fleet.requests:,.0f} "
                f"| {fleet.busy_cores:,.0f} | {fleet.replicas:,} | {fleet.gbit_in:,.1f} "
                f"| {fleet.gbit_out:,.1f} | {fleet.usd_per_hour:,.2f} "
                f"| {fleet.usd_per_million:.5f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Print the tables, or the figures of one fleet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--load", type=float, metavar="N", help="candidates a second")
    parser.add_argument("--rows", type=int, default=500, help="candidates of a request")
    parser.add_argument("--cpu-us", type=float, help="CPU time of a request (µs)")
    parser.add_argument("--body-bytes", type=int, help="size of a request")
    parser.add_argument("--cores", type=int, default=2, help="cores of a replica")
    parser.add_argument("--usd", type=float, default=USD_PER_CORE_HOUR, help="a core for an hour")
    options = parser.parse_args()
    if options.load is None:
        print(per_core(), fleets(options.cores, options.usd), sep="\n\n")
        return
    known = min(MEASURED, key=lambda measured: abs(measured.rows - options.rows))
    scale = options.rows / known.rows
    request = replace(
        known,
        rows=options.rows,
        cpu_us=options.cpu_us or known.cpu_us * scale,
        model_us=known.model_us * scale,
        body_bytes=options.body_bytes or int(known.body_bytes * scale),
    )
    fleet = Fleet(request, options.load, options.cores, options.usd)
    print(f"{fleet.requests:,.0f} requests/s keep {fleet.busy_cores:,.1f} cores busy")
    print(f"{fleet.replicas:,} replicas of {options.cores} cores, busy {BUSY_SHARE:.0%}")
    print(f"{fleet.gbit_in:,.2f} Gbit/s in, {fleet.gbit_out:,.2f} Gbit/s out")
    print(f"{fleet.usd_per_hour:,.2f} USD/h, {fleet.usd_per_million:.5f} USD a million candidates")


if __name__ == "__main__":
    main()
