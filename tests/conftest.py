"""What every test shares: a closed network, offline settings, and the material that may lie beside the project."""

import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads that spin starve whatever else runs here

ROOT = Path(__file__).resolve().parents[1]


class NetworkClosed(RuntimeError):
    """A test tried to reach another machine."""


def _is_loopback(host: object) -> bool:
    if host in (None, "", "localhost", b"localhost"):
        return True
    try:
        return ipaddress.ip_address(str(host)).is_loopback
    except ValueError:
        return False


def _refuse_unless_local(address: Any) -> None:
    """Unix sockets have a path for an address; internet sockets a tuple that starts with the host."""
    if isinstance(address, tuple) and not _is_loopback(address[0]):
        raise NetworkClosed(f"tests do not reach the network, and this one tried: {address!r}")


@pytest.fixture(autouse=True, scope="session")
def closed_network() -> Iterator[None]:
    """Connections and name look-ups to anything but this machine raise NetworkClosed."""
    connect, connect_ex, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        _refuse_unless_local(address)
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        _refuse_unless_local(address)
        return connect_ex(self, address)

    def guarded_getaddrinfo(host: Any, *rest: Any, **named: Any) -> Any:
        _refuse_unless_local((host,))
        return getaddrinfo(host, *rest, **named)

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", guarded_connect)
    patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
    patch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of outside material beside the project; the test is skipped where it is absent."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the material in ../shared, which is not here")
    return folder


@pytest.fixture(params=[True, False], ids=["kernels", "torch"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether what stands between products is done by our own kernels, where a C compiler is, or by torch."""
    from metier.train.fast import ops

    if not request.param:
        monkeypatch.setattr(ops, "native", lambda: None)
    elif ops.native() is None:
        pytest.skip("no C compiler")
    return bool(request.param)


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """An S3-compatible server on this machine without a bucket, named in the environment. Its URL."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server")
    found = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    found.start()
    host, port = found.get_host_and_port()
    url = f"http://{host}:{port}"
    given = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL": url}
    given |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        yield url
    found.stop()
