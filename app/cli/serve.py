"""`gatehouse serve`: reads the settings and serves, in this process or in several.

It imports no torch itself: that takes seconds, in which a wrong flag should be answered and a
signal find a handler, and the process that looks after several others needs none.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence

from pydantic import ValidationError
from pydantic_settings import CliApp, CliSettingsSource, SettingsError

from app.cli.usage import EXIT_OK, WrongUsage, rules_broken, without_values
from app.server.sockets import reserve
from app.server.supervisor import Supervisor
from app.settings import Settings
from app.telemetry import logging as json_logs


def serve(flags: Sequence[str]) -> int:
    """Read the settings and serve until a signal; the process ends here once it has served.

    Raises:
        WrongUsage: the settings cannot be followed.
    """
    source = CliSettingsSource[Settings](
        Settings,
        cli_prog_name="gatehouse serve",
        cli_kebab_case=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,
        cli_show_env_vars=True,
    )
    if any(flag.partition("=")[0] == "--keys" for flag in flags):
        # A process's arguments are seen by everyone on its machine.
        raise WrongUsage("no flag --keys; set GATEHOUSE_KEYS, or --keys-file")
    try:
        settings = CliApp.run(Settings, cli_args=list(flags), cli_settings_source=source)
    except SettingsError as error:
        message = str(error).removeprefix("error parsing CLI: ")
        raise WrongUsage(without_values(message)) from error
    except ValidationError as error:
        raise WrongUsage(rules_broken(error)) from error
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, _stop_before_start)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what it asks for, to read the files, comes next
    code = _serve_here(settings) if settings.processes == 1 else _serve_together(settings)
    logging.shutdown()
    # Not sys.exit: it would wait for a thread that hangs in somebody's model.
    os._exit(code)


def _serve_here(settings: Settings) -> int:
    """Serve in this process until a signal."""
    from app.server.process import run

    return run(settings)


def _serve_together(settings: Settings) -> int:
    """Serve in several processes until a signal; this one looks after them."""
    json_logs.configure(settings.log_level)
    try:
        port = reserve(settings.host, settings.port)
    except OSError as error:
        where = f"{settings.host} port {settings.port}"
        raise WrongUsage(f"cannot listen on {where}: {error.strerror}") from error

    def one(number: int) -> int:
        changes = {"port": port.getsockname()[1]}
        if settings.metrics_port:
            changes["metrics_port"] = settings.metrics_port + number
        return _serve_here(settings.model_copy(update=changes))

    kill_after_s = settings.drain_delay_s + settings.drain_timeout_s + 10
    return Supervisor(settings.processes, one, kill_after_s=kill_after_s).run()


def _stop_before_start(_signal: int, _frame: object) -> None:
    """Nothing was accepted yet, so there is nothing to drain."""
    sys.exit(EXIT_OK)
