"""Listening sockets, and what is said of them."""

import logging
import socket
from collections.abc import Sequence

from app.errors import ConfigurationInvalid

logger = logging.getLogger("app")

_BACKLOG = 2048


def listen(host: str, ports: Sequence[int], *, scheme: str = "http") -> list[socket.socket]:
    """Return listening sockets, one for each port; 0 takes a free one.

    Raises:
        ConfigurationInvalid: one of the addresses cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listeners: list[socket.socket] = []
    for port in ports:
        try:
            each = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except OSError as error:
            reason = f"cannot listen on {host} port {port}: {error.strerror}"
            raise ConfigurationInvalid(reason) from error
        listeners.append(each)
        log_address(each, scheme)
    return listeners


def log_address(listener: socket.socket, scheme: str) -> None:
    """Log the URL of a listener."""
    host, port, *_ = listener.getsockname()
    logger.info("listening on %s://%s:%d", scheme, f"[{host}]" if ":" in host else host, port)
