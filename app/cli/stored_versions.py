"""The versions of a model in the store, as arguments and options choose them."""

import argparse
from collections.abc import Sequence

from app.artifacts.store import Artifact, Store
from app.cli.option_values import version_number
from app.cli.parser import Parser, WrongUsage
from app.cli.settings_options import add_store, existing_store, store_of
from app.errors import did_you_mean


def add_model(parser: Parser) -> None:
    """Add the argument MODEL, and `--store`."""
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="name of the model (default: the only one)"
    )
    add_store(parser)


def versions_of_model(options: argparse.Namespace) -> list[Artifact]:
    """Return the complete versions of the model that the options choose, ascending.

    Raises:
        WrongUsage: there is no such store or model, or there are several and none is named.
    """
    store = Store(existing_store(store_of(options)))
    artifacts = list(store.artifacts())
    names = sorted({artifact.model for artifact in artifacts})
    if not names:
        raise WrongUsage(f'store "{store.folder}" has no artifacts')
    known = f"(models: {', '.join(names)})"
    name: str | None = options.model
    if name is None:
        if len(names) != 1:
            raise WrongUsage(f'name a model: store "{store.folder}" has {len(names)} {known}')
        (name,) = names
    elif name not in names:
        hint = did_you_mean(name, names)
        raise WrongUsage(f'store "{store.folder}" has no model "{name}"{hint} {known}')
    return [artifact for artifact in artifacts if artifact.model == name]


def number_of(text: str) -> int:
    """Return the number of a VERSION.

    Raises:
        WrongUsage: it is not a number.
    """
    try:
        return version_number(text)
    except argparse.ArgumentTypeError as error:
        raise WrongUsage(f"VERSION {text}: {error}") from None


def check_version(versions: Sequence[Artifact], version: int) -> None:
    """Refuse a version that the store does not have.

    Raises:
        WrongUsage: naming those that it has.
    """
    numbers = [artifact.version for artifact in versions]
    if version not in numbers:
        known = ", ".join(map(str, numbers[-20:]))
        raise WrongUsage(f"{versions[0].model} has no version {version} (versions: {known})")
