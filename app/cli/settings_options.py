"""Settings on the command line: their options, their errors, and the defaults of two paths."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from app.cli.parser import Parser, WrongUsage, not_empty, quoted
from app.errors import did_you_mean
from app.settings import Settings, rule, variable, variable_name

POLICIES = "policies.toml"

_UNITS = {"_ms": "MS", "_s": "SECONDS", "_bytes": "BYTES", "_rows": "ROWS", "_candidates": "ROWS"}


def add_settings(parser: Parser) -> None:
    """Add an option for every setting except the keys; their values stay strings."""
    for name, field in Settings.model_fields.items():
        if name == "keys":
            parser.add_argument("--keys", action=_RefuseKeys, help=argparse.SUPPRESS)
            continue
        default = f"default: {field.default}; " if field.default not in (None, "") else ""
        parser.add_argument(
            _option(name),
            metavar=_metavar(name),
            help=f"{field.description} ({default}{variable_name(name)})".replace("%", "%%"),
        )


def given_settings(options: argparse.Namespace) -> dict[str, str]:
    """Return the settings that options give; the others come from the environment."""
    values = {name: getattr(options, name, None) for name in Settings.model_fields}
    return {name: value for name, value in values.items() if value is not None}


def read_settings(given: Mapping[str, str], fixed: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings; by default, the policies file is the one beside the store.

    Args:
        given: the values that options give.
        fixed: values that the command sets itself, whatever the environment says.

    Raises:
        WrongUsage: names every wrong setting and the rule that it breaks.
    """
    try:
        settings = Settings(**{**(fixed or {}), **given})
    except ValidationError as error:
        raise WrongUsage(
            "; ".join(_problem(problem, given) for problem in error.errors())
        ) from None
    beside = policies_beside(settings.store)
    if settings.policies is None and beside.is_file():
        return settings.model_copy(update={"policies": beside})
    return settings


def add_store(parser: argparse._ActionsContainer) -> None:
    """Add `--store`; `store_of` knows its default."""
    parser.add_argument(
        "--store",
        type=not_empty(Path),
        metavar="DIR",
        help="folder of artifacts (default: GATEHOUSE_STORE, else store)",
    )


def store_of(options: argparse.Namespace) -> Path:
    """Return the folder that `--store` names, or the one that `gatehouse serve` would use."""
    store: Path = options.store or Path(variable("store") or "store")
    return store


def existing_store(store: Path) -> Path:
    """Return the folder if it is there.

    Raises:
        WrongUsage: it is not.
    """
    if not store.is_dir():
        problem = "is not a folder" if store.exists() else "does not exist"
        raise WrongUsage(f'store "{store}" {problem}')
    return store


def policies_of(options: argparse.Namespace) -> Path:
    """Return the policies file that `--policies` names, or the one that serve would use."""
    named: Path | str | None = options.policies or variable("policies")
    return policies_beside(store_of(options)) if named is None else Path(named)


def policies_followed(store: Path) -> Path | None:
    """Return the policies file that serve would follow with a store; None if there is none."""
    named = variable("policies")
    if named is not None:
        return Path(named)
    beside = policies_beside(store)
    return beside if beside.is_file() else None


def policies_beside(store: Path) -> Path:
    """Return the default path of a store's policies file."""
    return store.absolute().parent / POLICIES


class _RefuseKeys(argparse.Action):
    """Refuses an option that must not exist."""

    def __call__(self, *_: object) -> None:
        """Refuse it.

        Raises:
            WrongUsage: always; everyone on a machine sees the arguments of its processes.
        """
        raise WrongUsage("unknown option --keys; set GATEHOUSE_KEYS, or use --keys-file")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _metavar(name: str) -> str:
    """Return the placeholder of a value in the help: its choices, its unit, or its type."""
    kinds = get_args(Settings.model_fields[name].annotation) or (
        Settings.model_fields[name].annotation,
    )
    if not any(isinstance(type_, type) for type_ in kinds):
        return "|".join(kinds)
    if int in kinds or float in kinds:
        return next((unit for end, unit in _UNITS.items() if name.endswith(end)), "N")
    return "PATH" if Path in kinds else "TEXT"


def _problem(error: ErrorDetails, given: Mapping[str, str]) -> str:
    """Say which setting is wrong, where it comes from and the rule it breaks."""
    if not error["loc"]:  # two settings do not agree
        return error["msg"].removeprefix("Value error, ")
    name = str(error["loc"][0])
    value = given[name] if name in given else variable(name) or ""
    place = _option(name) if name in given else variable_name(name)
    if not value.strip():
        return f"{place}: must not be empty"
    if name != "keys":
        place = f"{place}{' ' if name in given else '='}{quoted(value)}"
    choices = [
        choice
        for choice in get_args(Settings.model_fields[name].annotation)
        if str(choice) == choice
    ]
    return f"{place}: must be {rule(name)}{did_you_mean(value.lower(), choices)}"
