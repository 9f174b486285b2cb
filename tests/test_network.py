"""The network is closed while tests run, and the loopback is not."""

import socket

import pytest

from conftest import NetworkClosed


def test_another_machine_cannot_be_reached():
    with pytest.raises(NetworkClosed, match="tests do not reach the network"), socket.socket() as outward:
        outward.connect(("192.0.2.1", 80))


def test_a_name_is_not_looked_up():
    with pytest.raises(NetworkClosed):
        socket.getaddrinfo("example.org", 443)


def test_this_machine_can_be_reached():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=2):
        pass
