"""`gatehouse replay`: score recorded traffic with two versions, and compare them."""

import argparse
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError
from rich.markup import escape
from rich.table import Table

from app.artifacts.store import Artifact
from app.cli.output import Output
from app.cli.parser import Parser, WrongUsage, complain, not_empty
from app.cli.settings_options import policies_of
from app.cli.signals import importing
from app.cli.stored_versions import add_model, check_version, number_of, versions_of_model
from app.cli.traffic_changes import active_besides, active_of, require_version, traffic_of
from app.errors import ArtifactInvalid, ConfigurationInvalid, ExitCode, PoliciesInvalid
from app.file_problems import rule_of
from app.files import read_small_file
from app.lifecycle.traffic import ReplaySettings, Traffic
from app.ranking.policies import LARGEST_FILE, NO_POLICIES, PolicySet

if TYPE_CHECKING:
    from app.artifacts.traffic_log import RecordedRequest, TrafficLog
    from app.scoring.replay import Contender, ReplayReport

_DESCRIPTION = """\
Score recorded requests (gatehouse serve --record DIR) with a version and with another one, by
default the active one, and compare them: scores and order per task, requests that are refused, and
CPU time. With --policies, the version is ranked by another policies file; without VERSION, that is
the only difference. Gates that are not given come from [replay] in traffic.toml."""
_EPILOG = """\
exit codes: 0 all gates pass; 1 a gate fails, or nothing could be compared; 2 wrong usage or files

examples:
  gatehouse replay feed 8 --log /var/lib/gatehouse/traffic --kendall-tau 0.8 --mean-ratio 1.2
  gatehouse replay feed 8 --against 6 --log traffic --plot replay.png
  gatehouse replay feed --log traffic --policies next.toml
"""
_GATES = {
    "error_ratio": "share of requests that VERSION refuses or fails on, at most X (default: 0)",
    "kendall_tau": "mean agreement of the orders, at least X (-1 to 1)",
    "top_10_overlap": "mean share of the 10 best candidates in common, at least X",
    "mean_ratio": "mean score of each task, between 1/X and X times the other version's",
    "cpu_ratio": "CPU time per candidate, at most X times the other version's",
}
_PLOT_BINS = 40


def add_arguments(parser: Parser) -> None:
    """Describe the command and add its arguments."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    add_model(parser)
    parser.add_argument("version", nargs="?", metavar="VERSION", help="the version on trial")
    parser.add_argument(
        "--log",
        action="append",
        required=True,
        type=not_empty(Path),
        metavar="DIR",
        help="folder of recorded traffic; may be repeated",
    )
    parser.add_argument(
        "--against", metavar="VERSION", help="the version to compare with (default: the active one)"
    )
    parser.add_argument(
        "--policies",
        type=not_empty(Path),
        metavar="FILE",
        help="policies file that ranks VERSION; the other one is ranked by the server's file",
    )
    parser.add_argument(
        "--requests",
        type=int,
        default=1000,
        metavar="N",
        help="replay the N newest requests (default: 1000)",
    )
    for name, rule in _GATES.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=float, metavar="X", help=f"gate: {rule}"
        )
    parser.add_argument(
        "--plot",
        type=not_empty(Path),
        metavar="FILE",
        help="write a figure of the scores of both versions, as .png or .svg",
    )
    parser.add_argument(
        "--rows",
        type=not_empty(Path),
        metavar="FILE.parquet",
        help="write the returned candidates with the scores of VERSION, one a row: join outcomes "
        "to it for gatehouse tune",
    )


def run(options: argparse.Namespace) -> int:
    """Replay, print the table and check the gates; return the exit code."""
    if options.version is None and (options.policies is None or (options.model or "").isdecimal()):
        require_version(options, "replay")
    if options.requests < 1:
        raise WrongUsage("--requests must be 1 or more")
    versions = versions_of_model(options)
    traffic = traffic_of(versions)
    gates = _gates(options, traffic)
    before, after = _contenders(options, versions, traffic)
    name = versions[0].model
    from app.scoring.replay import replay

    logs = _logs(options.log, name)
    try:
        report = replay(
            _requests(logs),
            before,
            after,
            most_requests=options.requests,
            keep_scores=options.plot is not None,
        )
        if options.rows is not None:
            _write_rows(options.rows, islice(_requests(logs), options.requests), after)
    except ModuleNotFoundError:
        from app.artifacts.traffic_log import NEEDS_PYARROW

        raise WrongUsage(NEEDS_PYARROW) from None
    for log in logs:
        if log.skipped.count:
            complain(
                f"{log.folder}: {log.skipped.count} files cannot be read: {log.skipped.reason}"
            )
    return _conclude(options, report, gates)


def _conclude(options: argparse.Namespace, report: "ReplayReport", gates: ReplaySettings) -> int:
    output = Output()
    output.print(_table(report))
    output.print_line(
        f"{report.requests} requests, {report.rows} candidates; {report.refused} refused by "
        f"{report.after}, {report.unusable} by {report.before}"
    )
    if report.refused:
        output.print_line(f"first refusal: {report.reason}")
    if report.missing:
        output.print_line(f"not compared, because one version lacks it: {report.missing}")
    if options.plot is not None and report.requests:
        _plot(report, options.plot)
        output.print_line(f"wrote {options.plot}")
    if not report.requests and not report.refused:
        complain(f"no recorded request that {report.before} can score")
        return ExitCode.FAILED
    failed = report.failures(gates)
    for failure in failed:
        complain(f"gate failed: {failure}")
    return ExitCode.FAILED if failed else ExitCode.OK


def _gates(options: argparse.Namespace, traffic: Traffic) -> ReplaySettings:
    """Return the gates of the options, else those of the traffic file.

    Raises:
        WrongUsage: one is out of range.
    """
    given = {name: getattr(options, name) for name in _GATES}
    given = {name: value for name, value in given.items() if value is not None}
    base = (traffic.replay or ReplaySettings()).model_dump()
    try:
        return ReplaySettings.model_validate(base | given)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise WrongUsage(f"--{option}: {rule_of(first)}") from None


def _contenders(
    options: argparse.Namespace, versions: Sequence[Artifact], traffic: Traffic
) -> tuple["Contender", "Contender"]:
    """Load both versions with their policies: the one to compare with, and the one on trial.

    Raises:
        WrongUsage: one cannot be loaded, or a policies file does not fit it.
    """
    if options.version is None:
        version = against = active_of(versions, traffic)
    else:
        version = number_of(options.version)
        check_version(versions, version)
        against = version
    if options.against is not None:
        against = number_of(options.against)
        check_version(versions, against)
    elif options.version is not None and options.policies is None:
        against = active_besides(versions, traffic, version)
    server_file = policies_of(argparse.Namespace(store=options.store, policies=None))
    server_policies = _policy_set(server_file, is_required=False)
    own = server_policies
    if options.policies is not None:
        own = _policy_set(options.policies, is_required=True)
    with importing():
        from app.engine.lanes import use_threads
    use_threads(1)  # CPU time is counted on this thread
    by_number = {artifact.version: artifact for artifact in versions}
    return (
        _contender(by_number[against], server_policies),
        _contender(by_number[version], own, options.policies),
    )


def _policy_set(file: Path, *, is_required: bool) -> PolicySet:
    try:
        return PolicySet.parse(read_small_file(file, max_bytes=LARGEST_FILE))
    except FileNotFoundError:
        if is_required:
            raise WrongUsage(f"{file}: no such file") from None
        return NO_POLICIES
    except (OSError, ConfigurationInvalid) as error:
        raise WrongUsage(f"{file}: {error}") from None


def _contender(artifact: Artifact, policies: PolicySet, file: Path | None = None) -> "Contender":
    import torch

    from app.artifacts.loader import load
    from app.scoring.replay import Contender

    try:
        model = load(artifact, torch.device("cpu"))
        label = str(artifact) if file is None else f"{artifact} ({file.name})"
        return Contender(model, policies.policies_for(model.manifest.traits), label)
    except (ArtifactInvalid, PoliciesInvalid) as error:
        raise WrongUsage(f"{artifact}: {error}") from None


def _logs(folders: Sequence[Path], model: str) -> list["TrafficLog"]:
    """Return the logs of a model.

    Raises:
        WrongUsage: a folder has none.
    """
    from app.artifacts.traffic_log import TrafficLog, log_files

    for folder in folders:
        if not log_files(folder, model):
            what = "has no recorded requests of" if folder.is_dir() else "does not exist; no log of"
            raise WrongUsage(f'--log: folder "{folder}" {what} {model}')
    return [TrafficLog(folder, model) for folder in folders]


def _requests(logs: Sequence["TrafficLog"]) -> Iterator["RecordedRequest"]:
    for log in logs:
        yield from log.requests()


def _table(report: "ReplayReport") -> Table:
    table = Table(
        title=f"{report.before} and {report.after} on recorded requests", title_justify="left"
    )
    table.add_column("task")
    numbers = (
        *(f"mean {report.before}", f"mean {report.after}", "ratio"),
        *("Kendall tau", "top 10 overlap", "largest difference"),
    )
    for name in numbers:
        table.add_column(name, justify="right")
    for task in report.tasks:
        tau = "-" if task.kendall_tau is None else f"{task.kendall_tau:.4f}"
        table.add_row(
            escape(task.name),
            f"{task.mean:.5g}",
            f"{task.other_mean:.5g}",
            f"{task.mean_ratio:.3f}",
            tau,
            f"{task.top_10_overlap:.4f}",
            f"{task.max_difference:.3g}",
        )
    table.add_row(
        *("CPU µs per candidate", f"{report.cpu_us:.2f}", f"{report.other_cpu_us:.2f}"),
        *(f"{report.cpu_ratio:.3f}", "", "", ""),
    )
    return table


def _plot(report: "ReplayReport", path: Path) -> None:
    """Write a figure: the scores of both versions by task, and Kendall's τ of the orders.

    Raises:
        WrongUsage: matplotlib is not installed, or cannot write this kind of file.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise WrongUsage("--plot needs matplotlib: pip install -e '.[plots]'") from None
    panels = len(report.scores) + 1
    figure = Figure(figsize=(3.4 * panels, 3.2), layout="constrained")
    axes: Any = figure.subplots(1, panels, squeeze=False)[0]
    for axis, (name, pair) in zip(axes, report.scores.items(), strict=False):
        edges = np.histogram_bin_edges(np.concatenate(pair), _PLOT_BINS)
        for scores, label in zip(pair, (report.before, report.after), strict=True):
            axis.hist(scores, edges, histtype="step", label=label)
        axis.set(xlabel=name, ylabel="candidates")
    axes[0].legend()
    axes[-1].hist(report.taus, _PLOT_BINS, histtype="stepfilled", alpha=0.6)
    axes[-1].set(xlabel="Kendall's tau of a request", ylabel="requests")
    try:
        figure.savefig(path)
    except ValueError as error:
        raise WrongUsage(f"--plot {path}: {error}") from None


def _write_rows(path: Path, recorded: Iterator["RecordedRequest"], contender: "Contender") -> None:
    """Write the returned candidates with a version's scores, as a log for `gatehouse tune`.

    Beside `request_id` (the record's id, or a number) and `position` there are `candidate`, the
    position in the request from 0, `time`, the ids, and the features that are one number: whatever
    outcomes can be joined on.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tasks = contender.model.manifest.task_names
    columns: dict[str, list[Any]] = {}
    written = 0
    for number, request in enumerate(recorded):
        scored = contender.answer(request.document)
        if isinstance(scored, str):
            continue
        shown = np.argsort(-request.rank_score, kind="stable")[: request.top_k]
        row: dict[str, list[Any]] = {
            "request_id": [request.id or str(number)] * len(shown),
            "candidate": request.positions[shown].tolist(),
            "time": [int(request.unix_s * 1e6)] * len(shown),
            "position": list(range(1, len(shown) + 1)),
        }
        for k, task in enumerate(tasks):
            row[f"score_{task}"] = scored.ranked.scores[shown, k].tolist()
        for name, value in request.document["user"].items():
            if isinstance(value, int | float | str):
                row[f"user.{name}"] = [value] * len(shown)
        for name, values in request.document["candidates"].items():
            flat = values[:, 0].tolist() if isinstance(values, np.ndarray) else values
            is_one = not isinstance(values, np.ndarray) or values.shape[1] == 1
            if is_one and not isinstance(flat[0], list):
                row[f"candidate.{name}"] = [flat[position] for position in shown]
        for name in dict.fromkeys((*columns, *row)):
            kept = columns.setdefault(name, [None] * written)
            kept += row.get(name, [None] * len(shown))
        written += len(shown)
    table = pa.table(columns)
    if written:
        at = table.column_names.index("time")
        table = table.set_column(at, "time", table.column("time").cast(pa.timestamp("us", "UTC")))
    pq.write_table(table, path)
