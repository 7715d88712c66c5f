"""`gatehouse items` and `gatehouse users`: tables of features that live in the service."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from app.artifacts.tables.description import TableKind
from app.cli.option_values import age, count_or_zero, version_number
from app.cli.parser import Parser, WrongUsage, not_empty
from app.cli.running_server import add_waiting
from app.cli.settings_options import add_store
from app.cli.signals import importing
from app.errors import ArtifactInvalid

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

exit codes: 0 published; 1 published, but the server of --wait refuses it, or has not applied it in
time; 2 wrong usage, or the file cannot be published: the first 20 reasons are listed; 130 or 143:
ended by Ctrl-C or SIGTERM, without leaving a part

examples:
  gatehouse {kind} publish {kind}.parquet --model feed
  gatehouse {kind} publish changes.jsonl --model feed --delta --wait http://127.0.0.1:8000
"""

_COMMANDS = {
    "publish": "publish files as a table, or as a change of one",
    "list": "show the tables in the store, and which versions of the model they fit",
    "show": "print the row of a key",
    "compact": "write a table and its deltas as a new table",
    "prune": "remove old tables",
}
_DETAILS = {
    "compact": """\

The new table has the next number, so it replaces the newest one. A table that is older than the one
that a version serves from is refused, unless --force is given: its rows would come back.""",
    "list": """\

Rows are those with all deltas. The note names a file that is missing or has another size; gatehouse
check also reads the files.""",
    "prune": """\

The newest N tables stay, and for each version of the model in the store the one that serves it.
Tables are read as a server reads them before it serves: one that it would refuse does not count,
and stays only if it is newer than those. While the model.json of a version cannot be read, nothing
is removed: nobody knows which table it needs.""",
}
"""What the help of a command says beside its line in `_COMMANDS`."""


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
            what = f"{_COMMANDS[name][0].upper()}{_COMMANDS[name][1:]}."
            command.description = what + _DETAILS.get(name, "")
            _ARGUMENTS[name](command)

    def run(self, options: argparse.Namespace) -> int:
        """Run the command that was chosen; return the exit code."""
        if options.command is None:
            raise WrongUsage(f"missing COMMAND; see gatehouse {self.kind} --help")
        with importing():
            run = _run_of(options.command)
        try:
            return run(options, self.kind)
        except ArtifactInvalid as error:
            raise WrongUsage(str(error)) from None


def _run_of(command: str) -> Callable[[argparse.Namespace, TableKind], int]:
    """Import what a command needs, and return the function that runs it."""
    if command == "publish":
        from app.cli.table_publish import run_publish

        return run_publish
    from app.cli import stored_tables

    return {
        "list": stored_tables.run_list,
        "show": stored_tables.run_show,
        "compact": stored_tables.run_compact,
        "prune": stored_tables.run_prune,
    }[command]


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
        "table, else the only id feature, with a warning if it has few values); it need not be a "
        "feature of the model; 1 to 64 characters without slashes, see --column for other columns",
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
        help="publish a table with another key than the newest has, or with under half of its "
        "rows; with --delta, remove more than half of the rows",
    )
    _add_delta(parser)
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
        type=age,
        metavar="TIME",
        help="age from which on the newest data is too old, such as 90s, 30m, 6h or 2d; the model "
        "is not ready then (default: no limit)",
    )
    parser.add_argument(
        "--max-bad-rows",
        type=count_or_zero,
        default=0,
        metavar="N",
        help="publish without the bad rows if there are at most N (default: 0)",
    )


def _add_delta(parser: Parser) -> None:
    """Add what is said of a change of a table."""
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
        help="with --delta: column that is true where the key is to be removed: true, t, yes, y or "
        "1; false, f, no, n, 0 or an empty cell keeps it, and anything else is a bad row; a file "
        "that only removes keys needs no column of a feature",
    )
    parser.add_argument(
        "--allow-empty",
        action="store_true",
        help="with --delta: publish also if no file has a row; the delta changes nothing, but the "
        "table counts as fresh (--max-age): for jobs that often have no change",
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
    parser.add_argument(
        "--force",
        action="store_true",
        help="publish the table also if a version of the model serves from a newer one",
    )
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


def _mapping(text: str) -> tuple[str, tuple[str, ...]]:
    """Convert `vector=v0,v1,v2`."""
    name, equals, columns = text.partition("=")
    names = tuple(column.strip() for column in columns.split(","))
    if not (name.strip() and equals and all(names)):
        raise argparse.ArgumentTypeError("must be FEATURE=COLUMN or FEATURE=COLUMN,COLUMN,…")
    return name.strip(), names
