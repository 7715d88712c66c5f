"""Listening sockets: of one process, or shared by several.

An IPv6 address also listens on IPv4 if it can: `::` means every address of the machine, for one
process, for several and for metrics alike.
"""

import errno
import logging
import socket
from collections.abc import Sequence

from app.errors import ConfigurationInvalid

logger = logging.getLogger("app")

_BACKLOG = 2048


def listen(host: str, ports: Sequence[int], *, shared: bool = False) -> list[socket.socket]:
    """Return one listening socket for each port; port 0 takes a free one.

    Several processes can listen on a `shared` one.

    Raises:
        ConfigurationInvalid: an address is in use or not available.
    """
    listeners: list[socket.socket] = []
    for port in ports:
        try:
            listener = _bound(host, port, shared=shared)
            listener.listen(_BACKLOG)
        except OSError as error:
            reason = f"cannot listen on {host} port {port}: {error.strerror}"
            raise ConfigurationInvalid(reason) from error
        listeners.append(listener)
    return listeners


def shared_socket(host: str, port: int) -> socket.socket:
    """Return a socket that several processes can bind (SO_REUSEPORT); it does not listen yet.

    Raises:
        OSError: the address is in use or not available.
    """
    return _bound(host, port, shared=True)


def reserve(host: str, port: int) -> socket.socket:
    """Return a shared socket on an address that no other program uses; `port` 0 takes a free one.

    While it is open, no other program can take the address.

    Raises:
        OSError: the address is in use or not available.
    """
    with _bound(host, port) as exclusive:
        # Linux lets a second socket bind the port of one that does not listen (SO_REUSEADDR).
        exclusive.listen()
        free_port: int = exclusive.getsockname()[1]
    return shared_socket(host, free_port)


def log_address(listener: socket.socket, scheme: str) -> None:
    """Log the URL of a listening socket."""
    host, port, *_ = listener.getsockname()
    logger.info("listening on %s://%s:%d", scheme, f"[{host}]" if ":" in host else host, port)


def _bound(host: str, port: int, *, shared: bool = False) -> socket.socket:
    is_ipv6 = ":" in host
    bound = socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if is_ipv6:  # set in any case: the default is a setting of the kernel
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.bind((host, port))
    except TypeError:  # bytes that are no text in an environment variable
        bound.close()
        raise OSError(errno.EINVAL, "not a host name") from None
    except OSError:
        bound.close()
        raise
    return bound
