"""The server: uvicorn with a graceful shutdown of its own."""

import asyncio
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
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
_LINGER_TURNS = 10  # of the event loop
_MAX_WAITING = 4096  # connections; the backlog of every listener is smaller
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_FLUSH_S = 0.1  # the event loop writes the last responses


class DrainingServer(uvicorn.Server):
    """A uvicorn server that drains on SIGTERM and SIGINT, and reloads on SIGHUP.

    Uvicorn raises the signal again when it has stopped, so the exit code is 143, and it closes
    connections on which a request is just arriving. Here a signal ends readiness, and the server
    serves for `drain_delay_s` more. Then it accepts waiting connections, stops listening, receives
    the requests that were sent before, and finishes them. While it drains, every response closes
    its connection. Further signals change nothing.
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
        on_reload: Callable[[], None],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Serve `app`; times are those of the settings.

        The readiness of `service` ends when draining begins. `metrics` counts refusals that no
        route sees. `on_reload` is called on the event loop for each SIGHUP.
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
                proxy_headers=False,  # client addresses are not used
                timeout_keep_alive=keep_alive_s,
                timeout_graceful_shutdown=drain_timeout_s,
                ssl_context_factory=None if tls is None else lambda _config, _default: tls,
            )
        )
        self._readiness = service.readiness
        self._drain_delay_s = drain_delay_s
        self._drain_timeout_s = drain_timeout_s
        self._on_reload = on_reload
        self._listening: list[tuple[socket.socket, asyncio.Server]] = []
        self._tasks: set[asyncio.Task[object]] = set()  # the loop itself keeps no reference

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections on these sockets."""
        await super().startup(sockets)
        self._listening += zip(sockets or [], self.servers, strict=True)

    async def listen_also(self, listener: socket.socket) -> bool:
        """Accept connections on one more bound socket; return whether the server does.

        A server that is ending closes the socket.
        """
        if self._readiness.is_draining:
            listener.close()
            return False
        former = self.servers
        await self.startup([listener])
        self.servers += former
        if self._readiness.is_draining:
            self._stop(asyncio.get_running_loop())
        return not self._readiness.is_draining

    def end(self) -> None:
        """Drain without a delay: finish open requests and return from `serve`."""
        self._readiness.drain()
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish open requests; after the time for that, the rest get an error."""
        await super().shutdown(sockets)
        remaining = [c for c in self.server_state.connections if isinstance(c, Connection)]
        for connection in remaining:
            connection.give_up()
        if remaining:
            await asyncio.sleep(_FLUSH_S)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while the server runs; ignore them from then on."""
        loop = asyncio.get_running_loop()
        for stop_signal in _STOP_SIGNALS:
            loop.add_signal_handler(stop_signal, self._drain, loop)
        loop.add_signal_handler(signal.SIGHUP, self._on_reload)
        try:
            yield
        finally:
            for handled in (*_STOP_SIGNALS, signal.SIGHUP):
                loop.remove_signal_handler(handled)
                signal.signal(handled, signal.SIG_IGN)

    def _drain(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._readiness.is_draining:
            return
        self._readiness.drain()
        if self._drain_delay_s:
            logger.info("shutting down: not ready, serving for %g s more", self._drain_delay_s)
        loop.call_later(self._drain_delay_s, self._stop, loop)

    def _stop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop listening; requests can still arrive on open connections."""
        logger.info("shutting down: finishing requests, up to %d s", self._drain_timeout_s)
        while self._listening:
            listener, server = self._listening.pop()
            # When a listener closes, the kernel resets connections that were not accepted yet.
            self._accept_waiting(listener, loop)
            server.close()
        self._tasks.add(loop.create_task(self._exit_later()))

    def _accept_waiting(self, listener: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        for _ in range(_MAX_WAITING):
            try:
                connection, _address = listener.accept()
            except OSError:  # none waits, or no more files can be opened
                return
            connection.setblocking(False)
            accepting = loop.connect_accepted_socket(
                self._protocol, connection, ssl=self.config.ssl
            )
            task: asyncio.Task[object] = loop.create_task(accepting)
            self._tasks.add(task)
            task.add_done_callback(_log_failure)

    def _protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state={}
        )

    async def _exit_later(self) -> None:
        await asyncio.sleep(_LINGER_S)
        # If the process got no CPU time meanwhile, it has not yet read what has arrived.
        for _ in range(_LINGER_TURNS):
            await asyncio.sleep(0)
        self.should_exit = True


def _log_failure(task: asyncio.Task[object]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.debug("a connection could not be opened: %s", error)  # a TLS handshake, say
