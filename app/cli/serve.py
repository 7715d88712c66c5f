"""`gatehouse serve`: reads the settings and serves, in this process or in several.

It does not import torch itself: a wrong option is reported at once, and the supervisor of several
processes does not need torch.
"""

import argparse
import logging
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

from app.artifacts.mounted import store_of_mount
from app.artifacts.store import Store
from app.cli.parser import Parser, WrongUsage
from app.cli.settings_options import (
    add_settings,
    given_settings,
    policies_beside,
    read_settings,
)
from app.errors import ArtifactInvalid
from app.server.sockets import reserve
from app.server.supervisor import Supervisor
from app.settings import Settings, variable_warnings
from app.telemetry import json_logs

logger = logging.getLogger("app")

_DESCRIPTION = """\
Serve the newest valid version of every model in the store until SIGTERM or Ctrl-C. New versions
are picked up while the server runs. If the store does not exist, the server waits for it."""
_EPILOG = """\
Every option can be given as the variable in its brackets; the option wins. An empty variable counts
as unset; GATEHOUSE_HOST, _KEYS, _KEYS_FILE, _TLS_CERT and _TLS_KEY must not be empty. API keys are
given as GATEHOUSE_KEYS or --keys-file, never as an option.

example:
  gatehouse serve --store store --port 8000 --max-batch-rows 256 --policies policies.toml
  curl http://127.0.0.1:8000/readyz
"""


def add_arguments(parser: Parser) -> None:
    """Describe the command and add its arguments."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    add_settings(parser)


def run(options: argparse.Namespace) -> int:
    """Read the settings and serve until a signal; the process ends here once it has served.

    Raises:
        WrongUsage: a setting cannot be used.
    """
    settings = read_settings(given_settings(options))
    json_logs.configure(settings.log_level)
    settings, links = _with_store(settings)
    if settings.processes == 1:
        _log_start(settings)
        code = _serve_here(settings)
    else:
        code = _serve_together(settings)
    links.close()
    logging.shutdown()
    # Not sys.exit: it would wait for a lane that hangs in a model.
    os._exit(code)


def _with_store(settings: Settings) -> tuple[Settings, ExitStack]:
    """Return the settings, with a store of links if the store is a model's or a version's folder.

    The links are removed when the second value is closed, or when the process ends by itself.

    Raises:
        WrongUsage: it is neither, or not of the model that the settings name.
    """
    links = ExitStack()

    def folder() -> Path:
        made = tempfile.TemporaryDirectory(prefix="gatehouse-", ignore_cleanup_errors=True)
        return Path(links.enter_context(made))

    try:
        store = store_of_mount(settings.store, settings.model_name, folder)
    except (ArtifactInvalid, OSError) as error:
        links.close()
        raise WrongUsage(f"store: {error}") from error
    if store != settings.store:
        for each in Store(store).artifacts():
            logger.info("%s is served as %s, by links in %s", settings.store, each, store)
    return settings.model_copy(update={"store": store}), links


def _log_start(settings: Settings) -> None:
    """Log the policies file, and warnings about environment variables."""
    for line in variable_warnings(os.environ):
        logger.warning("%s", line)
    if settings.policies is None:
        logger.info("no policies file: %s does not exist", policies_beside(settings.store))
    else:
        logger.info("following the policies file %s", settings.policies)


def _serve_here(settings: Settings) -> int:
    """Serve in this process until a signal."""
    from app.server.process import run as serve_until_signal

    return serve_until_signal(settings)


def _serve_together(settings: Settings) -> int:
    """Serve in several processes until a signal; this process supervises them."""
    try:
        port = reserve(settings.host, settings.port)
    except OSError as error:
        where = f"{settings.host} port {settings.port}"
        raise WrongUsage(f"cannot listen on {where}: {error.strerror}") from error
    _log_start(settings)

    def one(number: int) -> int:
        changes = {"port": port.getsockname()[1]}
        if settings.metrics_port:
            changes["metrics_port"] = settings.metrics_port + number
        return _serve_here(settings.model_copy(update=changes))

    kill_after_s = settings.drain_delay_s + settings.drain_timeout_s + 10
    return Supervisor(settings.processes, one, kill_after_s=kill_after_s).run()
