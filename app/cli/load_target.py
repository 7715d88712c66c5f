"""A server and the requests that `bench` and `plan` send it, made of a model's own example."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.parse import quote, urlsplit

from app.cli.option_values import count, version_number
from app.cli.parser import Parser, WrongUsage
from app.cli.running_server import ask
from app.errors import did_you_mean

if TYPE_CHECKING:
    from app.benchmarking.load import Plan
    from app.benchmarking.requests import Post

KEY = "GATEHOUSE_KEY"
"""The environment variable of the API key."""


def add_request(parser: Parser) -> argparse._ArgumentGroup:
    """Add the options that say what a request is, and return their group."""
    request = parser.add_argument_group("request")
    request.add_argument("--model", metavar="NAME", help="of the model (default: the only one)")
    request.add_argument(
        "--version", type=version_number, metavar="N", help="of the model (default: the active one)"
    )
    request.add_argument(
        "--rows", type=count, default=100, metavar="N", help="candidates (default: 100)"
    )
    request.add_argument(
        "--form",
        choices=("json", "v2-json", "v2-binary"),
        default="json",
        help="native JSON, or the Open Inference Protocol in JSON or binary (default: json)",
    )
    request.add_argument(
        "--only",
        type=lambda text: tuple(filter(None, text.split(","))),
        default=(),
        metavar="FEATURE,…",
        help="send these features only (default: all, or keys only where the model has tables)",
    )
    return request


@dataclass(frozen=True, slots=True)
class Target:
    """A server and the requests that it gets.

    Attributes:
        name: what is scored: model and version, or a file.
        plan: with the requests; rate and times are those of a second at most.
        post: the first of the requests.
        device: where the model runs.
    """

    name: str
    plan: "Plan"
    post: "Post"
    device: str


def target_of(options: argparse.Namespace) -> Target:
    """Ask the server for a model's example, and make the requests of it.

    Raises:
        WrongUsage: there is no such model, version or feature, or the file has no request.
        CannotConnect: the server cannot be reached, its response is of no use, or it has no model.
    """
    from app.benchmarking.load import Plan, http

    url = urlsplit(options.url)
    if url.path or url.query:
        raise WrongUsage(f"URL must be that of a server, without a path: not {url.path}")
    card = _card(options)
    posts = _posts(card, options)
    extra = {}
    if options.deadline is not None:
        extra["x-request-timeout-ms"] = str(max(1, round(options.deadline * 1e3)))
    if key := os.environ.get(KEY):
        extra["authorization"] = f"Bearer {key}"
    host = url.hostname or ""
    authority = url.netloc.rpartition("@")[2]
    requests = [http(post.path, post.body, {**post.headers, **extra}, authority) for post in posts]
    plan = Plan(
        url.port or (443 if url.scheme == "https" else 80),
        requests,
        connections=getattr(options, "connections", 256),
        host=host,
        tls=url.scheme == "https",
    )
    version = options.version or card["version"]
    return Target(f"{card['name']}/{version}", plan, posts[0], card["device"])


def _card(options: argparse.Namespace) -> Any:  # noqa: ANN401  (JSON)
    """Return a model's card with an example request of many candidates.

    Raises:
        WrongUsage: there is no such model or version, or there are several models and none is
            named.
        CannotConnect: the server cannot be reached, its response is of no use, or it has no model.
    """
    from app.benchmarking.load import CannotConnect
    from app.benchmarking.requests import EXAMPLE_CANDIDATES

    models = f"{options.url}/v1/models"
    try:
        names = [model["name"] for model in ask(models)["models"]]
        if names:
            name = _chosen(options.model, names)
            card = ask(f"{models}/{quote(name)}")
            example = f"{models}/{quote(name)}/example?candidates={EXAMPLE_CANDIDATES}"
            request = ask(example, os.environ.get(KEY))  # with a key it has the key of a user
    except URLError as error:
        raise CannotConnect(f"cannot connect to {options.url}: {error.reason}") from None
    except OSError as error:
        raise CannotConnect(f"no usable response from {options.url}: {error}") from None
    if not names:
        raise CannotConnect(f"{options.url}: no model is active yet")
    loaded = {version["version"]: version["role"] for version in card["versions"]}
    if options.version is not None and options.version not in loaded:
        roles = ", ".join(f"{version} ({role})" for version, role in loaded.items())
        raise WrongUsage(
            f'version {options.version} of model "{name}" is not loaded; loaded versions: {roles}'
        )
    return {**card, "example_request": request}


def _chosen(name: str | None, names: Sequence[str]) -> str:
    """Return the name of the model to use: the given one, or the only one.

    Raises:
        WrongUsage: there is no such model, or there are several and none is named.
    """
    known = f"(models: {', '.join(names)})"
    if name is None:
        if len(names) > 1:
            raise WrongUsage(f"name a model with --model: there are {len(names)} {known}")
        return names[0]
    if name not in names:
        raise WrongUsage(f'no model "{name}"{did_you_mean(name, names)} {known}')
    return name


def _content(file: Path) -> bytes:
    """Return the content of a file of requests.

    Raises:
        WrongUsage: it cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise WrongUsage(f"{file}: {error.strerror}") from None


def _posts(card: Any, options: argparse.Namespace) -> "list[Post]":  # noqa: ANN401
    """Return the requests of a file, or the model's example in the form that the options choose.

    Raises:
        WrongUsage: the file has no request, or the model lacks a feature.
    """
    from app.benchmarking.requests import Post, file_bodies, inputs_of, post_of, resized

    try:
        if options.request is not None:
            if options.form != "json" or options.only:
                raise ValueError("its requests are sent as they are: omit --form and --only")
            path = post_of(card["name"], options.version, "json", {}, []).path
            bodies = file_bodies(_content(options.request))
            return [Post(path, body, {"content-type": "application/json"}) for body in bodies]
    except ValueError as error:
        raise WrongUsage(f"{options.request}: {error}") from None
    try:
        request = resized(
            card["example_request"], options.rows, options.only, card.get("tables", [])
        )
    except ValueError as error:
        raise WrongUsage(f"--only: {error}") from None
    inputs = inputs_of(card)
    return [post_of(card["name"], options.version, options.form, request, inputs)]
