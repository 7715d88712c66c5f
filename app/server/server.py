"""The server: uvicorn, which drains on a signal and then lets its caller return."""

import asyncio
import logging
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from app.scoring.body import BodyReader
from app.scoring.score import Scorer
from app.scoring.service import Service
from app.server.connection import Connection
from app.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

_LINGER_S = 0.2  # bytes that were sent before the listener closed have arrived by then
_FLUSH_S = 0.1  # the event loop writes the last responses
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class DrainingServer(uvicorn.Server):
    """A uvicorn server that drains on SIGTERM and SIGINT.

    Uvicorn raises the signal again when it has stopped, which makes the exit code 143, and closes
    connections on which a request is just arriving. Here a signal fails readiness, the server goes
    on for `drain_delay_s`, then it stops listening, waits for what was sent before, and finishes
    it. While it drains, every answer closes its connection. A further signal changes nothing, now
    or later.
    """

    def __init__(
        self,
        app: ASGIApp,
        scorer: Scorer,
        bodies: BodyReader,
        service: Service,
        metrics: Metrics,
        *,
        keep_alive_s: int,
        drain_delay_s: float,
        drain_timeout_s: int,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Serve `app`; times are those of the settings.

        `service` is told when draining begins, and `metrics` what no route has seen.
        """
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(  # type: ignore[arg-type]
                    Connection, scorer=scorer, bodies=bodies, on_refusal=metrics.refused
                ),
                lifespan="off",
                ws="none",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,  # nothing here asks who called
                timeout_keep_alive=keep_alive_s,
                timeout_graceful_shutdown=drain_timeout_s,
                ssl_context_factory=None if tls is None else lambda _config, _default: tls,
            )
        )
        self._service = service
        self._drain_delay_s = drain_delay_s

    async def listen_also(self, listener: socket.socket) -> None:
        """Accept connections on one more bound socket, unless the server is ending."""
        former = self.servers
        await self.startup([listener])
        self.servers += former
        if self._service.draining:
            self._stop(asyncio.get_running_loop())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what is open; when the time for that is over, answer the rest with an error."""
        await super().shutdown(sockets)
        remaining = [c for c in self.server_state.connections if isinstance(c, Connection)]
        for connection in remaining:
            connection.give_up()
        if remaining:
            await asyncio.sleep(_FLUSH_S)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain on a signal while the server runs; ignore signals from then on."""
        loop = asyncio.get_running_loop()
        for each in _SIGNALS:
            loop.add_signal_handler(each, self._drain, loop)
        try:
            yield
        finally:
            for each in _SIGNALS:
                loop.remove_signal_handler(each)
                signal.signal(each, signal.SIG_IGN)

    def _drain(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._service.draining:
            logger.info("draining: not ready any more, stopping in %g s", self._drain_delay_s)
            self._service.readiness.drain()
            loop.call_later(self._drain_delay_s, self._stop, loop)

    def _stop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Refuse new connections; let requests that are on their way on old ones still arrive."""
        for listener in self.servers:
            listener.close()
        loop.call_later(_LINGER_S, self._exit)

    def _exit(self) -> None:
        self.should_exit = True
