"""`gatehouse serve`: reads the settings and serves, in this process or in several.

A wrong option is reported before torch is imported.
"""

import argparse
import gc
import logging
import os
import socket
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
from app.scoring.otel import misspelt_variables
from app.server.sockets import reserve
from app.server.supervisor import Supervisor
from app.settings import Settings, variable_warnings
from app.telemetry import json_logs
from app.telemetry.siblings import Member

logger = logging.getLogger("app")

_LONGEST_FOLDER = 96  # bytes; with a socket's name, below the 108 of unix(7)

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
        from app.server.process import run as serve_until_signal

        code: int = serve_until_signal(settings)
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
        for artifact in Store(store).artifacts():
            logger.info("%s is served as %s, by links in %s", settings.store, artifact, store)
    return settings.model_copy(update={"store": store}), links


def _log_start(settings: Settings) -> None:
    """Log the policies file, and warnings about environment variables."""
    for line in (*variable_warnings(os.environ), *misspelt_variables(os.environ)):
        logger.warning("%s", line)
    if settings.policies is None:
        logger.info("no policies file: %s does not exist", policies_beside(settings.store))
    else:
        logger.info("following the policies file %s", settings.policies)


def _serve_together(settings: Settings) -> int:
    """Serve in several processes until a signal; this process supervises them."""
    ports = {"port": settings.port, "metrics_port": settings.metrics_port}
    reserved = {name: _reserve(settings, port) for name, port in ports.items() if port is not None}
    settings = settings.model_copy(
        update={name: listener.getsockname()[1] for name, listener in reserved.items()}
    )
    _log_start(settings)
    with _private_folder() as folder:

        def serve_as_member(number: int) -> int:
            from app.server.process import run as serve_until_signal

            member = Member(Path(folder), number, settings.processes)
            return serve_until_signal(settings, member)

        _preload()
        kill_after_s = settings.drain_delay_s + settings.drain_timeout_s + 10
        return Supervisor(settings.processes, serve_as_member, kill_after_s=kill_after_s).run()


def _reserve(settings: Settings, port: int) -> socket.socket:
    try:
        return reserve(settings.host, port)
    except OSError as error:
        where = f"{settings.host} port {port}"
        raise WrongUsage(f"cannot listen on {where}: {error.strerror}") from error


def _private_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for the sockets between the processes."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="gatehouse-")
    except OSError as error:
        raise WrongUsage(f"several processes need a temporary folder: {error.strerror}") from error
    if len(os.fsencode(folder.name)) > _LONGEST_FOLDER:
        folder.cleanup()
        raise WrongUsage(f"TMPDIR is too long for a socket's path: {folder.name}")
    return folder


def _preload() -> None:
    """Import what the processes need, so that they share its memory and start in a moment.

    Objects that the garbage collector never visits are not copied by the processes.
    """
    import app.server.process  # noqa: F401

    gc.collect()
    gc.freeze()
