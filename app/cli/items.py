"""`gatehouse items` and `gatehouse users`: tables of features that live in the service."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.markup import escape
from rich.table import Table as TextTable

from app.artifacts.encoding import Vocabularies
from app.artifacts.manifest import DenseInput, Manifest
from app.artifacts.store import Artifact, Store
from app.artifacts.tables.description import (
    TableDescription,
    TableKind,
    incompatibilities,
)
from app.artifacts.tables.keys import Int64
from app.artifacts.tables.publish import compact, find_table, remove
from app.artifacts.tables.reader import ListedTable, Table, open_table, read_description, tables_of
from app.cli.output import Output
from app.cli.parser import Parser, WrongUsage, complain
from app.cli.settings_options import add_store, existing_store, store_of
from app.cli.signals import importing
from app.cli.table_publish import add_publish, run_publish
from app.cli.traffic_changes import chosen, version_number
from app.errors import ArtifactInvalid, ExitCode

_DESCRIPTION = """\
Tables of the features of {kind}, so that requests send keys only. Each command has its own help:
gatehouse {kind} publish --help"""
_EPILOG = """\
examples:
  gatehouse {kind} publish {kind}.parquet --model feed
  gatehouse {kind} list
  gatehouse {kind} show 42
"""
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
        add_publish(parser.add_command("publish", _COMMANDS["publish"]), kind)
        for name in ("list", "show", "compact", "prune"):
            command = parser.add_command(name, _COMMANDS[name])
            command.description = f"{_COMMANDS[name][0].upper()}{_COMMANDS[name][1:]}."
            _ARGUMENTS[name](command)

    def run(self, options: argparse.Namespace) -> int:
        """Run the command that was chosen; return the exit code."""
        if options.command is None:
            raise WrongUsage(f"missing COMMAND; see gatehouse {self.kind} --help")
        if options.command == "publish":
            return run_publish(options, self.kind)
        try:
            return _RUNS[options.command](options, self.kind)
        except ArtifactInvalid as error:
            raise WrongUsage(str(error)) from None


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
    "compact": _add_table,
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
        size = _size(found)
        for number in listed.deltas:
            newest = read_description(listed.delta_folder(number))
            size += _size(newest)
    except (ArtifactInvalid, OSError) as error:
        return ["", "", "", "", "", "", escape(str(error))]
    reasons = {number: incompatibilities(found, each) for number, each in manifests.items()}
    fits = [number for number, why in reasons.items() if not why]
    note = f"unknown keys: {found.unknown}"
    if found.max_age_s is not None:
        note += f"; at most {_time(found.max_age_s)} old"
    if reasons and not fits:
        newest_version = max(reasons)
        note = f"version {newest_version}: {'; '.join(reasons[newest_version])}"
    return [
        f"{found.rows:,}",
        str(len(listed.deltas)),
        f"{found.key.name} ({found.key.type})",
        f"{newest.created:%Y-%m-%d %H:%M}",
        f"{size / 1e6:.1f} MB",
        ", ".join(map(str, fits)) or "none",
        escape(note),
    ]


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
    output.print_line(f"{table.kind} {table.label} of {model.name}, {table.key} {options.key}")
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
    found = read_description(listed.folder)
    Output().print_line(
        f"published {found.label} of {model.name}: {found.source}, {found.rows:,} rows"
    )
    return ExitCode.OK


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
    needed = set()
    for manifest in _manifests(versions).values():
        for each in reversed(listed):
            try:
                if not incompatibilities(read_description(each.folder), manifest):
                    needed.add(each.version)
                    break
            except (ArtifactInvalid, OSError):
                continue
    return needed


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


def _size(description: TableDescription) -> int:
    return sum(each.size for each in description.files.values())


def _time(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds % length == 0:
            return f"{seconds / length:g}{unit}"
    return f"{seconds:g}s"


_RUNS: Mapping[str, Callable[[argparse.Namespace, TableKind], int]] = {
    "list": _list,
    "show": _show,
    "compact": _compact,
    "prune": _prune,
}
