"""`gatehouse rank`: score and rank requests from a file exactly as the server would.

The requests go through the whole service, built as `gatehouse serve` builds it but without a
socket: the same checks, the same batching, the same bytes. Settings come from the environment as
the server's do, so that limits agree.
"""

import argparse
import asyncio
import json
import sys
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from rich.markup import escape
from rich.table import Table

from app.cli.output import Output, escape_unencodable, write_bytes
from app.cli.parser import Parser, WrongUsage, complain, not_empty
from app.cli.settings_options import add_store, existing_store, read_settings
from app.cli.signals import importing
from app.errors import ArtifactInvalid, ConfigurationInvalid, ExitCode, MalformedBody
from app.protocol.json_body import decode
from app.settings import Settings

if TYPE_CHECKING:
    from app.server.in_process import ServiceResponse

Document = Mapping[str, Any]

_FIXED: Mapping[str, Any] = {
    **dict.fromkeys(("keys", "keys_file", "tls_cert", "tls_key")),  # they apply to sockets only
    "lanes": 1,
    "request_timeout_ms": 600_000.0,  # no client waits
}

_DESCRIPTION = "Score and rank requests from a file exactly as the server would, without a server."
_EPILOG = """\
Settings are read from GATEHOUSE_… variables, as the server reads them. Of a .jsonl file, line i of
the output is the response to line i; a request that is refused has its error document there.

exit codes: 0 all requests were scored; 1 the store or a model failed; 2 a request is wrong, or
the usage; each error is a line on standard error

example:
  gatehouse rank request.json --model feed --explain --table
"""


def add_arguments(parser: Parser) -> None:
    """Describe the command and add its arguments."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument(
        "file",
        type=Path,
        metavar="REQUEST.json",
        help="a score request; - is standard input; a .jsonl file has one request per line",
    )
    add_store(parser)
    parser.add_argument(
        "--model", metavar="NAME", help="model to rank with; needed if the store has several"
    )
    parser.add_argument(
        "--policies",
        type=not_empty(Path),
        metavar="FILE",
        help="file of ranking policies (default: GATEHOUSE_POLICIES, else policies.toml beside the "
        "store, if it exists)",
    )
    parser.add_argument(
        "--policy", metavar="NAME", help="policy that ranks (default: what the request says)"
    )
    parser.add_argument(
        "--explain", action="store_true", help="add each task's share of the rank score"
    )
    parser.add_argument("--table", action="store_true", help="print a table instead of JSON")


def run(options: argparse.Namespace) -> int:
    """Score and rank the requests of a file; return the exit code.

    Raises:
        WrongUsage: an option, a setting or the file cannot be used.
    """
    bodies = _bodies(options.file)
    if ranking := _ranking_options(options):
        bodies = {number: with_options(body, ranking) for number, body in bodies.items()}
    given = {
        name: str(value)
        for name in ("store", "policies")
        if (value := getattr(options, name)) is not None
    }
    settings = read_settings(given, _FIXED)
    existing_store(settings.store)
    with importing():
        import app.main  # noqa: F401  (torch, and all of the service)
    try:
        return asyncio.run(_rank(options, settings, bodies))
    except ConfigurationInvalid as error:
        raise WrongUsage(str(error)) from None
    except ArtifactInvalid as error:
        complain(f'nothing in store "{settings.store}" can be served: {error}')
        return ExitCode.FAILED


async def _rank(
    options: argparse.Namespace, settings: Settings, bodies: Mapping[int, bytes]
) -> int:
    code = ExitCode.OK
    if options.table:
        escape_unencodable()
    output = Output()
    async for number, response in _responses(settings, bodies, options.model):
        if response.problem is not None:
            place = f"{options.file}, line {number}" if len(bodies) > 1 else str(options.file)
            for line in response.problem:
                complain(f"{place}: {line}")
            code = max(code, ExitCode.USAGE if response.status < 500 else ExitCode.FAILED)
        if options.table and response.problem is None:
            output.print(response_table(orjson.loads(response.content), _keys(bodies[number])))
        elif response.problem is None or (len(bodies) > 1 and not options.table):
            write_bytes(response.content)
    return code


async def _responses(
    settings: Settings, bodies: Mapping[int, bytes], model: str | None
) -> AsyncIterator[tuple[int, "ServiceResponse"]]:
    """Score and rank JSON bodies, one after the other; yield each response with its body's number.

    Args:
        settings: the server's.
        bodies: by number.
        model: the model to rank with; None means the default model.

    Raises:
        ArtifactInvalid: nothing in the store can be served.
        ConfigurationInvalid: a setting cannot be used.
    """
    from app.main import gatehouse
    from app.server.in_process import post_json

    path = f"/v1/models/{model}/score" if model else "/v1/score"
    async with gatehouse(settings) as parts:
        await parts.start()
        if not parts.service.registry.active_models():
            raise ArtifactInvalid("it holds no artifacts")
        for number, body in bodies.items():
            yield number, await post_json(parts.app, path, body)


def with_options(body: bytes, options: Mapping[str, object]) -> bytes:
    """Put ranking options into a request; bodies that are not JSON objects pass unchanged."""
    try:
        document = decode(body)
    except MalformedBody:
        return body
    if not isinstance(document, dict):
        return body
    own = document.get("ranking") or {}
    if not isinstance(own, dict):
        return body
    # Not orjson: it would write NaN as null, which gives a different error.
    return json.dumps(document | {"ranking": {**own, **options}}).encode()


def _ranking_options(options: argparse.Namespace) -> dict[str, object]:
    explain = {"explain": True} if options.explain else {}
    return explain | ({"policy": options.policy} if options.policy else {})


def _keys(body: bytes) -> Sequence[str | int] | None:
    """Return the candidate keys of a request that was accepted, so it is a JSON object."""
    document = decode(body)
    assert isinstance(document, dict)
    keys: Sequence[str | int] | None = document.get("candidate_keys")
    return keys


def _bodies(file: Path) -> dict[int, bytes]:
    """Read the requests of a file, by line number if it has one per line."""
    try:
        content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise WrongUsage(f"{file}: {error.strerror}") from None
    if file.suffix != ".jsonl":
        return {1: content}
    return {n: line for n, line in enumerate(content.splitlines(), 1) if line.strip()}


def response_table(response: Document, keys: Sequence[str | int] | None) -> Table:
    """Tabulate a response, best candidate first, each task's share beside its score if explained.

    Args:
        response: the service's response, parsed.
        keys: the request's candidate keys, or None if it has none.
    """
    policy, explanation = response["policy"], response.get("explanation")
    weights = ", ".join(f"{task} {weight:g}" for task, weight in policy["weights"].items())
    table = Table(
        title=f"{escape(response['model'])}/{response['version']}, {escape(policy['name'])}: "
        f"{policy['formula']} of {escape(weights)}",
        title_justify="left",
        caption=None if explanation is None else _legend(explanation),
        caption_justify="left",
    )
    table.add_column("rank", justify="right")
    table.add_column("candidate")
    for name in ("rank score", *map(escape, response["scores"])):
        table.add_column(name, justify="right")
    parts = [] if explanation is None else explanation["candidates"]
    for name in _shares(parts[0]) if parts else ():
        table.add_column(escape(name), justify="right")
    for rank, position in enumerate(positions(response, keys)):
        key = position if keys is None else keys[position]
        scores = (f"{column[position]:.4g}" for column in response["scores"].values())
        shares = _shares(parts[rank]).values() if rank < len(parts) else ()
        rank_score = f"{response['rank_score'][position]:.4g}"
        table.add_row(str(rank + 1), escape(str(key)), rank_score, *scores, *shares)
    return table


def positions(response: Document, keys: Sequence[str | int] | None) -> list[int]:
    """Return the positions of a ranking's keys, best first.

    Of candidates with equal keys, the one with the higher rank score comes first.
    """
    ranking: list[int] = response["ranking"]
    if keys is None:
        return ranking
    places: dict[str | int, deque[int]] = defaultdict(deque)
    for position in sorted(range(len(keys)), key=lambda i: -response["rank_score"][i]):
        places[keys[position]].append(position)
    return [places[key].popleft() for key in ranking]


def _shares(candidate: Document) -> dict[str, str]:
    """Return the parts of a candidate's rank score, by name: each share and, in brackets, its lead.

    A calibrated score comes first, before a colon.
    """
    explained = dict(candidate["tasks"])
    if "multiplier" in candidate:
        explained["multiplier"] = candidate["multiplier"]
    shares = {}
    for name, part in explained.items():
        raw, calibrated = part["raw"], part["calibrated"]
        prefix = "" if raw == calibrated else f"{calibrated:.4g}: "
        shares[f"{name} share"] = f"{prefix}{part['share']:.3g} ({part['lead']:+.3g})"
    if "remainder" in candidate:
        shares["remainder"] = f"{candidate['remainder']:.3g}"
    return shares


def _legend(explanation: Document) -> str:
    return escape(
        f"share: {explanation['share']}. In brackets, lead: {explanation['lead']}. Before a colon: "
        "the calibrated score."
    )
