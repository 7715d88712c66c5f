"""One process of the service, from its start to its exit code."""

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress

import prometheus_client
import torch
import uvloop

from app.errors import ArtifactInvalid, ConfigurationInvalid, ExitCode
from app.lifecycle.poll_timer import PollTimer
from app.main import Gatehouse, gatehouse
from app.server.file_watcher import FileWatcher, Reloadable
from app.server.server import DrainingServer
from app.server.sockets import listen, log_address, shared_socket
from app.server.tls import Certificate
from app.settings import Settings
from app.telemetry import json_logs, siblings

logger = logging.getLogger("app")


def run(settings: Settings, member: siblings.Member | None = None) -> ExitCode:
    """Serve until SIGTERM or SIGINT and return the process's exit code.

    It is 0 after a drain, 1 after the device was lost, and 2 if a setting cannot be used, or if the
    store holds artifacts and none can serve. One of several processes gets its `member`,
    and ends with another code when a lane or its event loop is stuck.

    The event loop is not closed: that would wait for a lane that hangs in a model, and the process
    ends now anyway.
    """
    json_logs.configure(settings.log_level, threaded=True)
    # Otherwise each counter and histogram has a second series, the time of its creation.
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    if settings.device == "cuda" and not torch.cuda.is_available():
        return _unusable("device: cuda is not available here")
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    try:
        return runner.run(_serve(settings, member))
    except ConfigurationInvalid as error:
        return _unusable(str(error))


async def _serve(settings: Settings, member: siblings.Member | None) -> ExitCode:
    certificate = Certificate(settings.tls_cert, settings.tls_key) if settings.tls_cert else None
    # Several processes share a port, and each listens on it only once it has loaded its models.
    ports = [settings.port] if member is None else []
    ports += [] if settings.metrics_port is None else [settings.metrics_port]
    shared = member is not None
    listeners = listen(settings.host, ports, shared=shared)
    if settings.metrics_port == 0:
        taken = listeners[-1].getsockname()[1]
        settings = settings.model_copy(update={"metrics_port": taken})
    async with gatehouse(settings, member) as parts:
        parts.policy_file.load()
        for listener in listeners:  # every setting, and every file that one names, can be used
            log_address(listener, settings.scheme)
        return await _Process(settings, parts, certificate, member).serve(listeners)


class _Process:
    """The server and the tasks beside it: start, follow the store and the files, end when lost."""

    def __init__(
        self,
        settings: Settings,
        parts: Gatehouse,
        certificate: Certificate | None,
        member: siblings.Member | None = None,
    ) -> None:
        self._settings = settings
        self._parts = parts
        self._member = member
        self._exit_code = ExitCode.OK
        self._store_timer = PollTimer(settings.store_poll_s)
        self._watchers: list[tuple[FileWatcher, PollTimer]] = []
        self._watch(parts.keys)
        self._watch(parts.policy_file)
        if certificate is not None:
            self._watch(certificate)
            parts.metrics.watch(
                "certificate_expiry_timestamp_seconds",
                "When the TLS certificate, or one of its chain, expires (Unix time).",
                lambda: certificate.expires_unix_s,
            )
        parts.metrics.watch_total(
            "log_records_dropped_total",
            "Log records dropped because standard error was not read fast enough.",
            json_logs.dropped,
        )
        self._server = DrainingServer(
            parts.app,
            parts.scorer,
            parts.bodies,
            parts.service,
            parts.metrics,
            keep_alive_s=settings.keep_alive_s,
            drain_delay_s=settings.drain_delay_s,
            drain_timeout_s=settings.drain_timeout_s,
            tls=None if certificate is None else certificate.context,
            on_reload=self._look_now,
        )

    async def serve(self, listeners: Sequence[socket.socket]) -> ExitCode:
        """Serve until a signal, or until the process cannot serve; return the exit code."""
        async with asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(self._start_and_follow()),
                tasks.create_task(self._end_when_lost()),
                *(tasks.create_task(watcher.follow(timer)) for watcher, timer in self._watchers),
            ]
            if self._member is not None:
                answering = siblings.answer(self._member, self._parts.texts)
                background += [
                    tasks.create_task(answering),
                    tasks.create_task(self._end_when_stuck()),
                ]
            await self._server.serve(list(listeners))
            for task in background:
                task.cancel()
        return self._exit_code

    def _watch(self, reloadable: Reloadable) -> None:
        if reloadable.files:
            timer = PollTimer(self._settings.store_poll_s)
            self._watchers.append((FileWatcher(reloadable, self._parts.metrics), timer))

    def _look_now(self) -> None:
        """Poll the store and every file now."""
        logger.info("SIGHUP: reading the store, keys, policies and certificate again")
        for timer in (self._store_timer, *(timer for _, timer in self._watchers)):
            timer.wake()

    async def _start_and_follow(self) -> None:
        """Load what the store holds, then follow it; end the process if nothing can serve."""
        try:
            await self._parts.start()
        except OSError:  # it is logged; a network volume may come back
            pass
        except ArtifactInvalid as error:
            self._give_up(f"nothing in the store can be served: {error}")
            return
        except ConfigurationInvalid as error:
            self._give_up(str(error))
            return
        if not self._parts.service.registry.active_models():
            problem = "has no artifacts" if self._settings.store.exists() else "does not exist"
            logger.warning('store "%s" %s; waiting for it', self._settings.store, problem)
        relieve_garbage_collector()
        if self._member is not None:
            # Only now: the kernel sends connections to every process that listens.
            listener = shared_socket(self._settings.host, self._settings.port)
            if await self._server.listen_also(listener):
                log_address(listener, self._settings.scheme)
        await self._parts.deployment.follow(self._store_timer)

    async def _end_when_lost(self) -> None:
        """End the process when the device is lost; open requests get errors."""
        await self._parts.lost.wait()
        logger.critical("the device fails every call: this process ends")
        self._exit_code = ExitCode.FAILED
        self._server.end()

    async def _end_when_stuck(self) -> None:
        """End the process when a lane is stuck, or when the event loop is.

        Several processes share a port, so a probe of /livez would ask any of them. When the event
        loop does not set the timer again, the kernel ends the process with SIGALRM.
        """
        hang_s = self._settings.lane_hang_s
        try:
            while self._parts.service.is_alive(hang_s):
                signal.setitimer(signal.ITIMER_REAL, hang_s)
                await asyncio.sleep(min(1.0, hang_s / 4))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        logger.critical("a lane is stuck: this process ends")
        self._exit_code = ExitCode.FAILED
        self._server.end()

    def _give_up(self, reason: str) -> None:
        self._exit_code = _unusable(reason)
        self._server.end()


def relieve_garbage_collector() -> None:
    """Exclude the objects that exist now from garbage collection, and collect less often.

    Torch alone creates half a million objects that live as long as the process. Scanning them again
    and again would cause the longest latencies.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


def _unusable(reason: str) -> ExitCode:
    json_logs.flush()  # the reason is the last line
    with suppress(OSError):  # its reader may be gone; the exit code still tells
        sys.stderr.write(f"gatehouse: {reason}\n")
    return ExitCode.USAGE
