"""`gatehouse rank`: answer requests from a file exactly as the server would.

The requests go through the whole service, put together as `gatehouse serve` puts it together but
without a socket: the same checks, the same batching, the same bytes. Its settings are read from
the environment as the server's are, so that limits agree.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError
from rich.console import Console

from app.cli.answer_table import answer_table
from app.cli.usage import (
    EXIT_OK,
    EXIT_USAGE,
    EXIT_WRONG,
    Parser,
    WrongUsage,
    complain,
    rules_broken,
)
from app.errors import ArtifactInvalid, ConfigurationInvalid, MalformedBody
from app.protocol.json_body import decode
from app.settings import Settings

_ALONE: Mapping[str, Any] = {
    **dict.fromkeys(("keys", "keys_file", "tls_cert", "tls_key")),  # those are for sockets
    "lanes": 1,
    "request_timeout_ms": 600_000.0,  # nobody waits for the answer at a socket
}

_WIDEST = 1000  # characters: a table takes no more of them than it needs


def rank(flags: Sequence[str]) -> int:
    """Answer the requests of a file; 2 where one breaks a rule, 1 where the store or a model fails.

    Raises:
        WrongUsage: a flag, a setting or the file cannot be used.
    """
    told = _parser().parse_args(flags)
    bodies = _bodies(told.file)
    if options := _options(told):
        bodies = {number: optioned(body, options) for number, body in bodies.items()}
    try:
        settings = Settings(**_ALONE, **_given(told))
    except ValidationError as error:
        raise WrongUsage(rules_broken(error)) from None
    try:
        return asyncio.run(_rank(told, settings, bodies))
    except ConfigurationInvalid as error:
        raise WrongUsage(str(error)) from None
    except ArtifactInvalid as error:
        complain(f"nothing in {settings.store} can answer: {error}")
        return EXIT_WRONG


async def _rank(told: argparse.Namespace, settings: Settings, bodies: Mapping[int, bytes]) -> int:
    from app.cli.answers import answers  # and with it torch: help need not wait for it

    code = EXIT_OK
    async for number, answer in answers(settings, bodies, told.model):
        if answer.problem is not None:
            place = f"{told.file}, line {number}" if len(bodies) > 1 else str(told.file)
            for line in answer.problem:
                complain(f"{place}: {line}")
            code = max(code, EXIT_USAGE if answer.status < 500 else EXIT_WRONG)
        if told.table and answer.problem is None:
            table = answer_table(orjson.loads(answer.content), _keys(bodies[number]))
            console = Console()
            if not console.is_terminal:  # then its width is a guess, and nothing need be cut
                console.width = max(console.width, _WIDEST)
            console.print(table)
        elif answer.problem is None or (len(bodies) > 1 and not told.table):
            # Among many, a problem stands in its answer's place: line i answers line i.
            sys.stdout.write(answer.content.decode() + "\n")
    return code


def optioned(body: bytes, options: Mapping[str, object]) -> bytes:
    """Put ranking options into a request; what is no request stays as it is, to be refused."""
    try:
        document = decode(body)
    except MalformedBody:
        return body
    if not isinstance(document, dict):
        return body
    own = document.get("ranking") or {}
    if not isinstance(own, dict):
        return body
    # Not orjson: it would write NaN as null, and the complaint would be another.
    return json.dumps(document | {"ranking": {**own, **options}}).encode()


def _options(told: argparse.Namespace) -> dict[str, object]:
    """Return what flags say of the ranking."""
    explain = {"explain": True} if told.explain else {}
    return explain | ({"policy": told.policy} if told.policy else {})


def _keys(body: bytes) -> Sequence[str | int] | None:
    """Return the candidate keys of a request that was answered, so that it is known to be one."""
    document = decode(body)
    assert isinstance(document, dict)
    keys: Sequence[str | int] | None = document.get("candidate_keys")
    return keys


def _bodies(file: Path) -> dict[int, bytes]:
    """Read the requests of a file, by line where it has one a line."""
    try:
        content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise WrongUsage(f"{file}: {error.strerror}") from None
    if file.suffix != ".jsonl":
        return {1: content}
    return {n: line for n, line in enumerate(content.splitlines(), 1) if line.strip()}


def _given(told: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that flags set; the others come from the environment."""
    return {
        name: value for name in ("store", "policies") if (value := getattr(told, name)) is not None
    }


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="gatehouse rank",
        description="Answer requests from a file exactly as the server would, without a server.",
        epilog="Settings are read from GATEHOUSE_… variables, as the server reads them. Exit code "
        "2: a request is wrong, and each wrong place is named; 1: the store or a model is.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "file",
        type=Path,
        metavar="REQUEST.json",
        help="a score request; - is standard input, .jsonl has a request a line",
    )
    parser.add_argument(
        "--store",
        type=Path,
        metavar="DIR",
        help="folder of artifacts (default: GATEHOUSE_STORE, else store)",
    )
    parser.add_argument("--model", metavar="NAME", help="not needed where the store has only one")
    parser.add_argument(
        "--policies",
        type=Path,
        metavar="FILE",
        help="file of ranking policies (default: GATEHOUSE_POLICIES, else none)",
    )
    parser.add_argument(
        "--policy", metavar="NAME", help="which of them ranks, whatever the request says"
    )
    parser.add_argument(
        "--explain", action="store_true", help="ask for each task's share of the rank score"
    )
    parser.add_argument("--table", action="store_true", help="a table to read, and no JSON")
    return parser
