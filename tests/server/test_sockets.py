"""Listening sockets: which addresses they accept on, and who may share them."""

import socket

import pytest

from app.errors import ConfigurationInvalid
from app.server.sockets import listen, reserve, shared_socket

pytestmark = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")


def is_reachable(host: str, listener: socket.socket) -> bool:
    try:
        socket.create_connection((host, listener.getsockname()[1]), timeout=5).close()
    except OSError:
        return False
    return True


def alone(host: str) -> socket.socket:
    (listener,) = listen(host, [0])
    return listener


def shared(host: str) -> socket.socket:
    with reserve(host, 0) as reserved:
        listener = shared_socket(host, reserved.getsockname()[1])
    listener.listen()
    return listener


@pytest.mark.parametrize("make", [alone, shared])
@pytest.mark.parametrize(
    ("host", "ipv4", "ipv6"),
    [
        ("::", True, True),
        ("::1", False, True),
        ("0.0.0.0", True, False),
        ("127.0.0.1", True, False),
        ("localhost", True, False),
    ],
)
def test_host_listens_on_the_same_addresses_with_several_processes(make, host, ipv4, ipv6):
    with make(host) as listener:
        assert (is_reachable("127.0.0.1", listener), is_reachable("::1", listener)) == (ipv4, ipv6)


@pytest.mark.parametrize("host", ["127.0.0.1", "::"])
def test_a_reserved_port_is_shared_by_processes_and_refused_to_others(host):
    with reserve(host, 0) as mine:
        port = mine.getsockname()[1]
        with shared_socket(host, port) as first, shared_socket(host, port) as second:
            first.listen()
            second.listen()
            with pytest.raises(OSError, match="in use"):
                socket.create_server(("127.0.0.1", port))
            with pytest.raises(OSError, match="in use"):
                reserve(host, port)


@pytest.mark.parametrize("host", ["127.0.0.1", "::"])
def test_a_port_in_use_is_a_configuration_error_that_names_it(host):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigurationInvalid, match=f"cannot listen on {host} port {port}: .* in"
        ):
            listen(host, [port])


@pytest.mark.parametrize(
    "host", ["\udcff", "a\0b", "a" * 300, "a..b", "[::1]", "127.0.0.1:80", "*"]
)
def test_a_host_that_is_not_one_is_refused_with_a_reason(host):
    with pytest.raises(ConfigurationInvalid, match="cannot listen on"):
        listen(host, [0])
    with pytest.raises(OSError, match=r".+"):
        reserve(host, 0)
