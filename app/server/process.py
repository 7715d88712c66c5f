"""One process of the service, from its start to its exit code."""

import asyncio
import gc
import logging
import sys
from contextlib import suppress
from typing import NoReturn

import prometheus_client
import torch
import uvloop

from app.errors import ArtifactInvalid, ConfigurationInvalid
from app.main import Gatehouse, gatehouse
from app.server.file_watcher import FileWatcher, Reloadable
from app.server.listeners import listen, log_address
from app.server.server import DrainingServer
from app.server.supervisor import shared_socket
from app.settings import Settings
from app.telemetry import logging as json_logs

logger = logging.getLogger("app")

EXIT_OK, EXIT_LOST, EXIT_UNUSABLE = 0, 1, 2


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT and return the process's exit code.

    It is 0 after a drain, 1 after the device was lost, and 2 where the settings cannot be followed,
    or where the store holds artifacts and none can be served. The event loop is left as it is, for
    closing it would wait for a thread that hangs in somebody's model: the process should end now.
    """
    json_logs.configure(settings.log_level)
    # Each counter and histogram would have a second series, with the time of its creation.
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    if settings.device == "cuda" and not torch.cuda.is_available():
        return _unusable("device: cuda is not available here")
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    try:
        return runner.run(_serve(settings))
    except ConfigurationInvalid as error:
        return _unusable(str(error))


async def _serve(settings: Settings) -> int:
    # Where the port is shared, it is not listened on before there are answers.
    ports = [settings.port] if settings.processes == 1 else []
    ports += [] if settings.metrics_port is None else [settings.metrics_port]
    listeners = listen(settings.host, ports, scheme=settings.scheme)
    if settings.metrics_port == 0:
        taken = listeners[-1].getsockname()[1]
        settings = settings.model_copy(update={"metrics_port": taken})
    async with gatehouse(settings) as parts:
        server = DrainingServer(
            parts.app,
            parts.service,
            parts.metrics,
            keep_alive_s=settings.keep_alive_s,
            drain_delay_s=settings.drain_delay_s,
            drain_timeout_s=settings.drain_timeout_s,
            tls=None if parts.certificate is None else parts.certificate.context,
        )
        rotated: list[Reloadable | None] = [parts.keys, parts.certificate, parts.policy_file]
        following = [
            asyncio.create_task(FileWatcher(each).follow(settings.store_poll_s))
            for each in rotated
            if each is not None and each.files
        ]
        deploying = asyncio.create_task(_deploy(settings, parts, server))
        deploying.add_done_callback(lambda _: setattr(server, "should_exit", True))
        watching = asyncio.create_task(_end_when_lost(parts, server))
        await server.serve(listeners)
        for each in (deploying, watching, *following):
            each.cancel()
        if parts.lost.is_set():
            return EXIT_LOST
        try:
            await deploying
        except asyncio.CancelledError:
            return EXIT_OK
        except ArtifactInvalid as error:
            return _unusable(f"nothing in the store can be served: {error}")


async def _deploy(settings: Settings, parts: Gatehouse, server: DrainingServer) -> NoReturn:
    """Load what the store holds, then follow it; end only if none of it is fit."""
    with suppress(OSError):  # it is logged, and the store may become readable
        await parts.deployment.refresh()
    parts.policy_file.load()  # once more, on the models that are there now
    if not parts.service.is_ready:
        logger.warning("no artifacts in %s: waiting for a first one", settings.store)
    # Torch alone makes half a million objects that live for ever. Collecting them again and again
    # would be the latency tail: they leave the collector's sight, and it runs less often.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    if settings.processes > 1:
        # Not before: the kernel would share out connections to a process that cannot answer yet.
        listener = shared_socket(settings.host, settings.port)
        await server.listen_also(listener)
        log_address(listener, settings.scheme)
    await parts.deployment.follow(settings.store_poll_s)


async def _end_when_lost(parts: Gatehouse, server: DrainingServer) -> None:
    """Answer what is here, each with its error, and end: another process may fare better."""
    await parts.lost.wait()
    logger.critical("the device fails every call: this process ends")
    parts.service.draining = True
    server.should_exit = True


def _unusable(reason: str) -> int:
    sys.stderr.write(f"gatehouse: {reason}\n")
    return EXIT_UNUSABLE
