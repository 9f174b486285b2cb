"""A server in this process, for tests: tiny models, a free port, a client that speaks HTTP."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvicorn

from metier.core.store import Store
from metier.serve.app import make_app
from metier.serve.guard import Door, Limits
from metier.serve.opening import Wanted, open_hosts
from metier.serve.runs import Runs


@contextmanager
def serving(
    models: dict[str, Path],
    root: Path,
    *,
    limits: Limits | None = None,
    token: str = "",
    slots: int = 8,
    waiting: int = 64,
) -> Iterator[str]:
    """The address of a server that is up, until the block ends."""
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        hosts = open_hosts([Wanted(name, folder) for name, folder in models.items()], slots=slots, waiting=waiting)
        door = Door("127.0.0.1", port, token)
        app = make_app(hosts, door=door, limits=limits or Limits(), runs=Runs(root / "runs", Store(root / "store")))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join(timeout=10)
            for host in {id(host): host for host in hosts.values()}.values():
                host.close()


def client(address: str, token: str = "") -> httpx.Client:
    """A plain HTTP client."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return httpx.Client(base_url=address, headers=headers, timeout=60)
