"""The tables and the plot of BENCHMARKS.md, from the results of `python -m tests.bench.peers`."""

import json
import math
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from app.engine.hardware import usable_cores
from tests import REPOSITORY
from tests.bench.peers.environments import FOLDER, REQUIREMENTS

DOCUMENT = REPOSITORY / "BENCHMARKS.md"
PLOT = REPOSITORY / "tests" / "bench" / "peers" / "peers.svg"
SIZES = (1, 50, 500)
CONNECTIONS = (1, 8, 32)
OURS = "Gatehouse"
TWO = "Gatehouse, 2 processes"
"""The same with an event loop more, which helps with small requests."""
ALONE = "in process"
"""The model without a server, as Gatehouse runs it."""
PLAIN = "in process, as PyTorch runs it"
"""The same file, loaded and frozen: what every peer runs."""


@dataclass(frozen=True, slots=True)
class Result:
    """One measurement.

    Attributes:
        round: its round, from 1.
        peer: name of the server, or `ALONE`.
        form: of its requests.
        rows: candidates of a request.
        connections: of a closed loop; 0 is an open loop.
        rate: answers per second.
        p50_ms: median of the latency.
        p99_ms: 99th percentile of the latency.
        cpu_us: CPU time of all processes of the server per request (µs).
        offered: the rate of an open loop (1/s).
        others: the share of the cores' time that neither server nor load used meanwhile, but
            other processes: above some percent, rates and latencies say little.
    """

    round: int
    peer: str
    form: str
    rows: int
    connections: int
    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    offered: float = 0.0
    others: float = 0.0


@dataclass(frozen=True, slots=True)
class Cell:
    """Medians over the rounds."""

    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    offered: float
    others: float
    rounds: int


_PICTURE = """\
![Requests per second of every server, by rows of a request](tests/bench/peers/peers.svg)

The dotted line is the same model in process, one request at a time on each core."""
Key = tuple[str, str, int, int]
Cells = Mapping[Key, Cell]


def medians(results: Sequence[Result]) -> Cells:
    """Return the medians by peer, form, rows and connections."""
    by_key: dict[Key, list[Result]] = {}
    for result in results:
        key = (result.peer, result.form, result.rows, result.connections)
        by_key.setdefault(key, []).append(result)
    return {
        key: Cell(
            median([result.rate for result in found]),
            median([result.p50_ms for result in found]),
            median([result.p99_ms for result in found]),
            median([result.cpu_us for result in found]),
            median([result.offered for result in found]),
            median([result.others for result in found]),
            len(found),
        )
        for key, found in by_key.items()
    }


def peers_of(cells: Cells, form: str) -> list[str]:
    """Return the servers with this form, ours first, then by their rate of 50 rows."""
    names = {peer for peer, its_form, *_ in cells if its_form == form and its_form}

    def order(name: str) -> tuple[bool, bool, float]:
        cell = cells.get((name, form, 50, 32))
        return name != OURS, name != TWO, 0.0 if cell is None else -cell.rate

    return sorted(names, key=order)


def summary(cells: Cells) -> Iterator[str]:
    """Yield the first table: rates and p99 at 32 connections."""
    yield "| | 1 row | 50 rows | 500 rows |"
    yield "| --- | ---: | ---: | ---: |"
    for name, title in _ALONE_TITLES.items():
        limit = [cells[name, "", rows, 1] for rows in SIZES if (name, "", rows, 1) in cells]
        if len(limit) == len(SIZES):
            yield f"| {title} | {' | '.join(f'{cell.rate:,.0f}' for cell in limit)} |"
    for form in _FORMS:
        for name in peers_of(cells, form):
            found = [cells.get((name, form, rows, 32)) for rows in SIZES]
            shown = ["" if c is None else f"{c.rate:,.0f} ({c.p99_ms:.1f})" for c in found]
            yield f"| {_title(name, form)} | {' | '.join(shown)} |"


def costs(cells: Cells) -> Iterator[str]:
    """Yield the second table: CPU time at 32 connections, and p50 of a single caller."""
    yield "| | CPU, 1 row | 50 rows | 500 rows | p50, 1 row | 50 rows | 500 rows |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for name, title in _ALONE_TITLES.items():
        limit = [cells[name, "", rows, 1] for rows in SIZES if (name, "", rows, 1) in cells]
        if len(limit) == len(SIZES):
            shown = [f"{cell.cpu_us:,.0f}" for cell in limit]
            shown += [f"{cell.p50_ms:.2f}" for cell in limit]
            yield f"| {title} | {' | '.join(shown)} |"
    for form in _FORMS:
        for name in peers_of(cells, form):
            busy = [cells.get((name, form, rows, 32)) for rows in SIZES]
            lonely = [cells.get((name, form, rows, 1)) for rows in SIZES]
            shown = ["" if c is None else f"{c.cpu_us:,.0f}" for c in busy]
            shown += ["" if c is None else f"{c.p50_ms:.2f}" for c in lonely]
            yield f"| {_title(name, form)} | {' | '.join(shown)} |"


_FORMS = {
    "binary": "binary",
    "json": "JSON",
    "ids": "keys of a table only",
    "own": "own artifact: keys, bf16, the user once",
}
_ALONE_TITLES = {
    PLAIN: "the file in process",
    ALONE: "the same, [with oneDNN](#matrix-products-mkl-onednn-and-bf16)",
}


def _title(name: str, form: str) -> str:
    bold = "**" if name in (OURS, TWO) else ""
    return f"{bold}{name}, {_FORMS[form]}{bold}"


def ratios(cells: Cells) -> Iterator[str]:
    """Yield the table of ratios to the best peer of each cell."""
    yield "| form | rows | connections | rate / best | | p99 / best | | CPU / best | |"
    yield "| --- | ---: | ---: | ---: | --- | ---: | --- | ---: | --- |"
    for form in ("binary", "json"):
        others = [name for name in peers_of(cells, form) if name not in (OURS, TWO)]
        for rows in SIZES:
            for connections in CONNECTIONS:
                ours = cells.get((OURS, form, rows, connections))
                found = {
                    name: cell
                    for name in others
                    if (cell := cells.get((name, form, rows, connections))) is not None
                }
                if ours is None or not found:
                    continue
                fastest = max(found, key=lambda name: found[name].rate)
                steadiest = min(found, key=lambda name: found[name].p99_ms)
                cheapest = min(found, key=lambda name: found[name].cpu_us)
                yield (
                    f"| {_FORMS[form]} | {rows} | {connections} "
                    f"| {ours.rate / found[fastest].rate:.2f} | {fastest} "
                    f"| {ours.p99_ms / found[steadiest].p99_ms:.2f} | {steadiest} "
                    f"| {ours.cpu_us / found[cheapest].cpu_us:.2f} | {cheapest} |"
                )


def details(cells: Cells) -> Iterator[str]:
    """Yield every cell."""
    yield "| form | rows | connections | server | requests/s | p50 ms | p99 ms | CPU µs a request |"
    yield "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |"
    for form in _FORMS:
        for rows in SIZES:
            for connections in CONNECTIONS:
                for name in peers_of(cells, form):
                    cell = cells.get((name, form, rows, connections))
                    if cell is not None:
                        yield (
                            f"| {_FORMS[form]} | {rows} | {connections} | {name} "
                            f"| {cell.rate:,.0f} | {cell.p50_ms:.2f} | {cell.p99_ms:.2f} "
                            f"| {cell.cpu_us:,.0f} |"
                        )


def open_loop(cells: Cells) -> Iterator[str]:
    """Yield the open loop, if it was measured: 70 % of the lowest peak, at Poisson times."""
    found = {key: cell for key, cell in cells.items() if key[3] == 0}
    if not found:
        return
    yield "| rows | offered, 1/s | server | answered, 1/s | p50 ms | p99 ms | CPU µs a request |"
    yield "| ---: | ---: | --- | ---: | ---: | ---: | ---: |"
    for (name, _, rows, _), cell in sorted(found.items(), key=lambda entry: entry[0][2]):
        yield (
            f"| {rows} | {cell.offered:,.0f} | {name} | {cell.rate:,.0f} | {cell.p50_ms:.2f} "
            f"| {cell.p99_ms:.2f} | {cell.cpu_us:,.0f} |"
        )


Goal = tuple[str, float, float]
"""What is compared, the ratio that was measured, and the most that it may be."""


def goals(cells: Cells, name: str = OURS) -> Iterator[Goal]:
    """Yield each goal that the results decide, for one of our settings."""
    for peer in ("Triton", "mosec"):
        for form in ("binary", "json"):
            found = [
                cells[peer, form, rows, count].rate / cells[name, form, rows, count].rate
                for rows in SIZES
                for count in CONNECTIONS
                if (peer, form, rows, count) in cells and (name, form, rows, count) in cells
            ]
            if found:
                what = f"every cell, {_FORMS[form]}: rate of {peer} / ours (the worst cell)"
                yield what, max(found), 1.0
    ours, mosec = cells.get((name, "binary", 50, 32)), cells.get(("mosec", "binary", 50, 32))
    if ours and mosec:
        yield "50 rows, binary: CPU / mosec", ours.cpu_us / mosec.cpu_us, 1.0
    alone = cells.get((ALONE, "", 500, 1))
    for form, most in (("binary", 1.05), ("json", 1.2)):
        large = cells.get((name, form, 500, 32))
        if alone and large:
            yield (
                f"500 rows, {_FORMS[form]}: CPU / the model alone",
                large.cpu_us / alone.cpu_us,
                most,
            )
    best = [
        cell.rate
        for (peer, form, rows, count), cell in cells.items()
        if form == "json" and (rows, count) == (500, 32) and peer not in (OURS, TWO)
    ]
    json_500 = cells.get((name, "json", 500, 32))
    if best and json_500:
        yield (
            "500 rows, JSON: 2 × the rate of the best JSON peer / ours",
            2 * max(best) / json_500.rate,
            1.0,
        )
    ids = cells.get((name, "ids", 500, 32))
    for form, most in (("json", 0.2), ("binary", 0.6)):
        full = cells.get((name, form, 500, 32))
        if ids and full and alone:
            what = f"500 rows, keys only: CPU beside the model's / that of {_FORMS[form]}"
            yield what, (ids.cpu_us - alone.cpu_us) / (full.cpu_us - alone.cpu_us), most
    rates = [
        cell.rate
        for (peer, _, rows, n), cell in cells.items()
        if (rows, n) == (500, 32) and peer not in (OURS, TWO)
    ]
    own = cells.get((name, "own", 500, 32))
    if own and rates:
        yield (
            "500 rows: 3 × the rate of the best peer / our own artifact's",
            3 * max(rates) / own.rate,
            1.0,
        )
    for rows in SIZES:
        opened = {
            peer: cell for (peer, _, size, n), cell in cells.items() if n == 0 and size == rows
        }
        others = [cell.p99_ms for peer, cell in opened.items() if peer not in (OURS, TWO)]
        if name in opened and others:
            what = f"{rows} rows, open loop at 70 %: p99 / the best peer"
            yield what, opened[name].p99_ms / min(others), 1.0


def goal_table(cells: Cells) -> Iterator[str]:
    """Yield the goals, met or not, for both of our settings."""
    two = {what: ratio for what, ratio, _ in goals(cells, TWO)}
    yield "| goal (32 connections unless said) | at most | one process | | two processes | |"
    yield "| --- | ---: | ---: | --- | ---: | --- |"
    for what, ratio, most in goals(cells):
        yield f"| {what} | {most:.2f} | {_verdict(ratio, most)} | {_verdict(two.get(what), most)} |"


def _verdict(ratio: float | None, most: float) -> str:
    if ratio is None:
        return "not measured | "
    return f"{ratio:.2f} | {'met' if ratio <= most else 'not met'}"


def settings_list() -> Iterator[str]:
    """Yield the setting of each peer that won its sweep, and the peers that could not be run."""
    chosen = FOLDER / "chosen.json"
    tried = json.loads(chosen.read_text()) if chosen.is_file() else {}
    for peer, rates in tried.items():
        if rates:
            best = json.loads(max(rates, key=lambda settings: rates[settings]))
            shown = ", ".join(f"{name} {value}" for name, value in best.items())
            yield f"- {peer}: {shown} (of {len(rates)} settings)"
    for failed in sorted(FOLDER.glob("*.failed")):
        yield f"- {failed.stem} is not measured: {failed.read_text()}"
    pins = [next(iter(packages)) for packages in REQUIREMENTS.values()]
    yield f"- versions: {', '.join(pins)}; torch 2.13.0 in each"


def section(results: Sequence[Result]) -> Mapping[str, str]:
    """Return the text of each part that stands between markers."""
    cells = medians(results)
    rounds = [cell.rounds for cell in cells.values() if cell.rounds]
    others = median([cell.others for (_, form, *_), cell in cells.items() if form] or [0.0])
    machine = (
        f"Measured on {usable_cores()} cores of {_cpu()}; {min(rounds)} to {max(rounds)} rounds a "
        f"cell; other work used {others:.0%} of the cores meanwhile."
    )
    return {
        "peers-summary": "\n".join([*summary(cells), "", machine, "", _PICTURE]),
        "peers-costs": "\n".join(costs(cells)),
        "peers-goals": "\n".join(goal_table(cells)),
        "peers-ratios": "\n".join(ratios(cells)),
        "peers-open": "\n".join(open_loop(cells)),
        "peers-details": "\n".join(details(cells)),
        "peers-settings": "\n".join(settings_list()),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.*)", info.read_text()) if info.is_file() else None
    return found[1].strip() if found else platform.machine()


def write(results: Sequence[Result], *, is_written: bool) -> None:
    """Print the parts, or put them between their markers in BENCHMARKS.md and draw the plot."""
    if not results:
        return
    parts = section(results)
    if not is_written:
        for name, text in parts.items():
            print(f"\n{name}\n\n{text}")
        return
    document = DOCUMENT.read_text(encoding="utf-8")
    for name, text in parts.items():
        document = between(document, name, text)
    DOCUMENT.write_text(document, encoding="utf-8")
    plot(medians(results))


def between(document: str, name: str, text: str) -> str:
    """Return a document with a text between the markers of a name.

    Raises:
        ValueError: it has no such markers.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if document.count(begin) != 1 or document.count(end) != 1:
        raise ValueError(f"BENCHMARKS.md must have {begin} and {end} once")
    before, _, rest = document.partition(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"


def plot(cells: Cells) -> None:
    """Draw the rates at 32 connections, as a share of the model in process."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gatehouse"}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        for axes, rows in zip(figure.subplots(1, 3), SIZES, strict=True):
            bars = [
                (cell.rate, f"{name}, {_FORMS[form]}", name in (OURS, TWO))
                for form in _FORMS
                for name in peers_of(cells, form)
                if (cell := cells.get((name, form, rows, 32))) is not None
            ]
            bars.sort()
            colors = ["#c0392b" if is_ours else "#8aa4b8" for _, _, is_ours in bars]
            axes.barh([label for _, label, _ in bars], [rate for rate, *_ in bars], color=colors)
            for position, (rate, *_) in enumerate(bars):
                axes.text(rate, position, f" {rate:,.0f}", va="center", fontsize=7)
            alone = cells.get((ALONE, "", rows, 1))
            if alone is not None and not math.isnan(alone.rate):
                axes.axvline(alone.rate, color="grey", linestyle=":")
            axes.set(title=f"{rows} row{'s' if rows > 1 else ''}: requests/s")
            axes.tick_params(labelsize=7)
            axes.margins(x=0.2)
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(PLOT, metadata={"Date": None})
