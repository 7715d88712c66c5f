"""`gatehouse items` and `gatehouse users`: tables of features that live in the service."""

import argparse
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.table import Table as TextTable

from app.artifacts.encoding import Vocabularies
from app.artifacts.manifest import DenseInput, Manifest
from app.artifacts.store import Artifact, Store
from app.artifacts.tables.compatibility import incompatibilities
from app.artifacts.tables.description import Fold, TableDescription, TableKind, read_description
from app.artifacts.tables.keys import Int64
from app.artifacts.tables.listing import ListedTable, find_table, newest_fitting, tables_of
from app.artifacts.tables.publish import compact, remove
from app.artifacts.tables.table import Table, open_table
from app.cli.output import Output
from app.cli.parser import Parser, WrongUsage, complain, not_empty
from app.cli.settings_options import add_store, existing_store, store_of
from app.cli.signals import importing
from app.cli.traffic_changes import (
    add_waiting,
    chosen,
    nudge_and_wait_for_table,
    version_number,
)
from app.errors import ArtifactInvalid, ExitCode

_DESCRIPTION = """\
Tables of the features of {kind}: they live in the service, so that requests send keys only. Each
command has its own help: gatehouse {kind} publish --help"""
_EPILOG = """\
The store is the folder of --store (default: GATEHOUSE_STORE, else store).

examples:
  gatehouse {kind} publish {kind}.parquet --model feed
  gatehouse {kind} list
  gatehouse {kind} show 42
"""
_PUBLISH = """\
Publish the features of all {items} as a table, so that requests send keys only. Every value is
checked by the rules of a request and encoded for the model, once. Servers see a whole table or
none, and apply it within a poll of the store. With --delta, the file has only what changes: rows
are added or replaced, and the other rows of the newest table stay."""
_PUBLISH_EPILOG = """\
FILE ends in .parquet, .csv, .tsv, .jsonl or .ndjson; text may be compressed (.gz). Columns have
the names of the features; see --column for others. An empty cell is the feature's default. In CSV,
a list is JSON or has spaces, commas, semicolons or bars between its elements. Needs the extra:
pip install -e '.[data]'

A table fits the versions of the model with the same encodings and vocabularies. Before a version
with others serves, publish a table for it (--version); servers give each version the newest table
that fits it.

exit codes: 0 published; 1 published, and the server of --wait has refused or not applied it in
time; 2 wrong usage, or the file cannot be published: every reason is listed

examples:
  gatehouse {kind} publish {kind}.parquet --model feed
  gatehouse {kind} publish changes.jsonl --model feed --delta --wait http://127.0.0.1:8000
"""

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_COMMANDS = {
    "publish": "publish files as a table, or as a change of one",
    "list": "show the tables in the store, and which versions of the model they fit",
    "show": "print the row of a key",
    "compact": "write a table and its deltas as a new table",
    "prune": "remove old tables",
}


@dataclass(frozen=True, slots=True)
class TableCommands:
    """The commands for one kind of tables."""

    kind: TableKind

    def add_arguments(self, parser: Parser) -> None:
        """Describe the commands and add their arguments."""
        kind = self.kind
        parser.description = _DESCRIPTION.format(kind=kind)
        parser.epilog = _EPILOG.format(kind=kind)
        _add_publish(parser.add_command("publish", _COMMANDS["publish"]), kind)
        for name in ("list", "show", "compact", "prune"):
            command = parser.add_command(name, _COMMANDS[name])
            command.description = f"{_COMMANDS[name][0].upper()}{_COMMANDS[name][1:]}."
            _ARGUMENTS[name](command)

    def run(self, options: argparse.Namespace) -> int:
        """Run the command that was chosen; return the exit code."""
        if options.command is None:
            raise WrongUsage(f"missing COMMAND; see gatehouse {self.kind} --help")
        if options.command == "publish":
            with importing():
                from app.cli.table_publish import run_publish
            return run_publish(options, self.kind)
        try:
            return _RUNS[options.command](options, self.kind)
        except ArtifactInvalid as error:
            raise WrongUsage(str(error)) from None


def _add_publish(parser: Parser, kind: TableKind) -> None:
    parser.description = _PUBLISH.format(items=kind)
    parser.epilog = _PUBLISH_EPILOG.format(kind=kind)
    parser.add_argument(
        "files", type=not_empty(Path), nargs="+", metavar="FILE", help="table in one or more files"
    )
    parser.add_argument("--model", metavar="NAME", help="name of the model (default: the only one)")
    add_store(parser)
    parser.add_argument(
        "--version",
        type=version_number,
        metavar="V",
        help="version of the model to encode for (default: the newest)",
    )
    parser.add_argument(
        "--key",
        metavar="NAME",
        help="name of the key in requests and column of the file (default: that of the newest "
        "table, else the only id feature); it need not be a feature of the model",
    )
    parser.add_argument(
        "--column",
        type=_mapping,
        action="append",
        default=[],
        metavar="FEATURE=COLUMN",
        help="column of a feature or of the key, if it has another name; "
        "FEATURE=COLUMN,COLUMN,… for a dense feature in several columns; may be repeated",
    )
    parser.add_argument(
        "--sent",
        action="append",
        default=[],
        metavar="FEATURE",
        help="feature that every request sends, so the table need not have it; may be repeated",
    )
    _add_rules(parser, kind)
    _add_fold(parser, kind)
    parser.add_argument(
        "--force",
        action="store_true",
        help="publish a table with another key than the newest has, or with under half of its rows",
    )
    parser.add_argument("--delta", action="store_true", help="change a table, do not replace it")
    parser.add_argument(
        "--table",
        type=version_number,
        metavar="N",
        help="with --delta: the table to change (default: the newest)",
    )
    parser.add_argument(
        "--deleted",
        metavar="COLUMN",
        help="with --delta: column that is true where the key is to be removed; a file that only "
        "removes keys needs no column of a feature",
    )
    add_waiting(parser)


def _add_fold(parser: Parser, kind: TableKind) -> None:
    """Add `--fold`, which tables of users do not have."""
    if kind == "users":
        parser.set_defaults(fold=False)
        return
    parser.add_argument(
        "--fold",
        action="store_true",
        help="also keep what the first layers of the version make of each item, so that requests "
        "of keys leave that out; for networks of python -m models; says first what it takes",
    )


def _add_rules(parser: Parser, kind: TableKind) -> None:
    """Add what is wrong with a row or a table, and what happens then."""
    parser.add_argument(
        "--unknown",
        choices=("error", "default", "drop") if kind == "items" else ("error", "default"),
        help="what happens with a key that the table does not have: the request fails, the "
        "features have their defaults"
        + (", or the candidate is left out" if kind == "items" else "")
        + " (default: error)",
    )
    parser.add_argument(
        "--max-age",
        type=_duration,
        metavar="TIME",
        help="age from which on the newest data is too old, such as 90s, 30m, 6h or 2d; the server "
        "is not ready then (default: no limit)",
    )
    parser.add_argument(
        "--max-bad-rows",
        type=_count,
        default=0,
        metavar="N",
        help="publish without the bad rows if there are at most N (default: 0)",
    )


def _add_model(parser: Parser) -> None:
    parser.add_argument("--model", metavar="NAME", help="name of the model (default: the only one)")
    add_store(parser)


def _add_table(parser: Parser) -> None:
    _add_model(parser)
    parser.add_argument(
        "--table",
        type=version_number,
        metavar="N",
        help="number of the table (default: the newest)",
    )


def _add_compact(parser: Parser) -> None:
    _add_table(parser)
    add_waiting(parser)


def _add_show(parser: Parser) -> None:
    parser.add_argument("key", metavar="KEY", help="key of the row")
    _add_table(parser)


def _add_prune(parser: Parser) -> None:
    _add_model(parser)
    parser.add_argument(
        "--keep", type=int, required=True, metavar="N", help="how many tables to keep"
    )
    parser.add_argument("--dry-run", action="store_true", help="remove nothing, only say what")


_ARGUMENTS: Mapping[str, Callable[[Parser], None]] = {
    "list": _add_model,
    "show": _add_show,
    "compact": _add_compact,
    "prune": _add_prune,
}


def _list(options: argparse.Namespace, kind: TableKind) -> int:
    """Print the tables."""
    if options.model is None:
        artifacts = list(Store(existing_store(store_of(options))).artifacts())
    else:
        artifacts = chosen(options)
    shown = TextTable("table", "rows", "deltas", "key", "created", "size", "fits versions", "note")
    rows = 0
    for model in dict.fromkeys(each.folder.parent for each in artifacts):
        manifests = _manifests([each for each in artifacts if each.folder.parent == model])
        for listed in tables_of(model, kind):
            rows += 1
            shown.add_row(f"{model.name} {listed.version}", *_row(listed, manifests))
    if not rows:
        complain(f'store "{store_of(options)}" has no {kind}')
        return ExitCode.FAILED
    Output().print(shown)
    return ExitCode.OK


def _row(listed: ListedTable, manifests: Mapping[int, Manifest]) -> list[str]:
    try:
        found = read_description(listed.folder)
        newest = found
        size = found.size
        for number in listed.deltas:
            newest = read_description(listed.delta_folder(number))
            size += newest.size
    except (ArtifactInvalid, OSError) as error:
        return ["", "", "", "", "", "", escape(str(error))]
    reasons = {number: incompatibilities(found, each) for number, each in manifests.items()}
    fits = [number for number, why in reasons.items() if not why]
    note = f"unknown keys: {found.unknown}"
    if found.fold is not None:
        note += f"; {_fold_note(listed, found.fold, manifests)}"
    if found.max_age_s is not None:
        note += f"; at most {_time(found.max_age_s)} old"
    if reasons and not fits:
        newest_version = max(reasons)
        note = f"version {newest_version}: {'; '.join(reasons[newest_version])}"
    if listed.gap:
        note = f"{listed.gap}; {note}"
    return [
        f"{found.rows:,}",
        str(len(listed.deltas)),
        f"{found.key.name} ({found.key.type})",
        f"{newest.created:%Y-%m-%d %H:%M}",
        f"{size / 1e6:.1f} MB",
        ", ".join(map(str, fits)) or "none",
        escape(note),
    ]


def _fold_note(listed: ListedTable, fold: Fold, manifests: Mapping[int, Manifest]) -> str:
    """Return which versions of the model serve from what a table has folded."""
    for number in listed.deltas:
        delta = read_description(listed.delta_folder(number))
        if delta.rows and delta.fold != fold:
            return f"not folded any more: delta {number} is not"
    serves = [number for number, each in manifests.items() if fold.serves(each)]
    numbers = ", ".join(map(str, serves)) or f"{fold.version}, which the store does not have"
    return f"folded for version {numbers} ({4 * fold.width:,} bytes per item)"


def _show(options: argparse.Namespace, kind: TableKind) -> int:
    """Print one row."""
    versions = chosen(options)
    model = versions[0].folder.parent
    listed = find_table(model, kind, options.table)
    table = open_table(listed, model.name)
    key = _key(table, options.key)
    position = table.find(key)
    if position[0] < 0:
        complain(f"{table.kind} {table.label} has no key {options.key}")
        return ExitCode.FAILED
    row = table.take(position)
    words = _words(table.description, versions)
    output = Output()
    folded = "" if table.fold is None else f", folded for version {table.fold.version}"
    output.print_line(
        f"{table.kind} {table.label} of {model.name}, {table.key} {options.key}{folded}"
    )
    for name in table.columns:
        values = np.atleast_1d(row[name][0]).tolist()
        feature = next(e.feature for e in table.description.columns if e.feature.name == name)
        if isinstance(feature, DenseInput):
            text = " ".join(f"{each:.7g}" for each in values)
        else:
            known = words.get(name, {})
            padding = getattr(feature, "padding", None)
            text = " ".join(
                f"{each} ({known[each]})" if each in known else str(each)
                for each in values
                if each != padding
            )
        output.print_line(f"  {name}: {text}")
    return ExitCode.OK


def _key(table: Table, text: str) -> Int64 | list[str]:
    if table.key_type is str:
        return [text]
    try:
        return np.array([int(text)], np.int64)
    except (ValueError, OverflowError):
        raise WrongUsage(f"KEY {text}: keys of this table are integers of 64 bits") from None


def _words(
    description: TableDescription, versions: Sequence[Artifact]
) -> Mapping[str, Mapping[int, object]]:
    """Return the id of each row of an embedding table, by feature, if a version still has them."""
    with importing():
        from app.artifacts.loader import load_vocabularies
    for number, manifest in reversed(_manifests(versions).items()):
        if not incompatibilities(description, manifest):
            (artifact,) = (each for each in versions if each.version == number)
            vocabularies: Vocabularies = load_vocabularies(artifact, manifest)
            return {
                name: {row: word for word, row in vocabulary.items()}
                for name, vocabulary in vocabularies.items()
            }
    return {}


def _compact(options: argparse.Namespace, kind: TableKind) -> int:
    """Write a table and its deltas as a new table."""
    model = chosen(options)[0].folder.parent
    listed = compact(model, kind, options.table)
    published = time.monotonic()
    found = read_description(listed.folder)
    folded = "" if found.fold is None else f", folded for version {found.fold.version}"
    Output().print_line(
        f"published {found.label} of {model.name}: {found.source}, {found.rows:,} rows{folded}"
    )
    return nudge_and_wait_for_table(model.name, listed, options, published)


def _prune(options: argparse.Namespace, kind: TableKind) -> int:
    """Remove old tables."""
    if options.keep < 1:
        raise WrongUsage("--keep must be 1 or more")
    versions = chosen(options)
    model = versions[0].folder.parent
    listed = tables_of(model, kind)
    kept = {each.version for each in listed[-options.keep :]} | _needed(listed, versions)
    for each in listed:
        if each.version not in kept:
            if not options.dry_run:
                remove(each)
            verb = "would remove" if options.dry_run else "removed"
            Output().print_line(f"{verb} {kind} {each.version} of {model.name}")
    return ExitCode.OK


def _needed(listed: Sequence[ListedTable], versions: Sequence[Artifact]) -> set[int]:
    """Return the newest table that fits each version of the model."""
    fitting = [newest_fitting(listed, each) for each in _manifests(versions).values()]
    return {table.version for table in fitting if table is not None}


def _manifests(versions: Sequence[Artifact]) -> dict[int, Manifest]:
    """Return the manifests that can be read, by version."""
    with importing():
        from app.artifacts.loader import read_manifest
    found = {}
    for each in versions:
        try:
            found[each.version] = read_manifest(each)
        except (ArtifactInvalid, OSError):
            continue
    return found


def _mapping(text: str) -> tuple[str, tuple[str, ...]]:
    """Convert `vector=v0,v1,v2`."""
    name, equals, columns = text.partition("=")
    names = tuple(each.strip() for each in columns.split(","))
    if not (name.strip() and equals and all(names)):
        raise argparse.ArgumentTypeError("must be FEATURE=COLUMN or FEATURE=COLUMN,COLUMN,…")
    return name.strip(), names


def _duration(text: str) -> float:
    """Convert `90s`, `30m`, `6h` or `2d` to seconds."""
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]+)?)([smhd])", text.strip())
    if found is None or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError("must be a time such as 90s, 30m, 6h or 2d")
    return float(found[1]) * _UNITS_S[found[2]]


def _count(text: str) -> int:
    """Convert a number of rows."""
    if not (text.isdecimal() and len(text) <= 12):
        raise argparse.ArgumentTypeError("must be a whole number, 0 or more")
    return int(text)


def _time(seconds: float) -> str:
    fitting = [unit for unit, length in _UNITS_S.items() if seconds % length == 0]
    unit = fitting[-1] if fitting else "s"
    return f"{seconds / _UNITS_S[unit]:g}{unit}"


_RUNS: Mapping[str, Callable[[argparse.Namespace, TableKind], int]] = {
    "list": _list,
    "show": _show,
    "compact": _compact,
    "prune": _prune,
}
