"""`metier serve`: an OpenAI-compatible server and a web page for models that a recipe made, on this machine alone.

Costs loading the models; adapters on one base share its weights. Ends with Ctrl-C: answers under way get five seconds.
"""

import asyncio
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from metier.cli.chat import find_model
from metier.core.errors import InputError, MissingExtra
from metier.core.store import Store

if TYPE_CHECKING:
    import uvicorn

    from metier.serve.guard import Door, Limits

TOKEN = "METIER_TOKEN"  # noqa: S105 - the variable's name
LAST_SECONDS = 5
NEEDED = ("fastapi", "uvicorn", "prometheus_client")


@dataclass(frozen=True)
class Settings:
    """How to serve. numbers: of the weights. slots: requests of a model under way at a time; waiting: beside those."""

    host: str
    port: int
    hosts: tuple[str, ...]
    numbers: Literal["auto", "fp32", "bf16", "int8"]
    slots: int
    waiting: int


def serve_models(
    names: Sequence[str], store_folder: Path, out: Path, settings: Settings, limits: "dict[str, float | int | None]"
) -> None:
    """Check everything, load the models, and answer until stopped."""
    for package in NEEDED:
        if find_spec(package) is None:
            raise MissingExtra(package, "serve", needed_by="metier serve")
    from metier.serve.guard import Door, Limits

    door = Door(settings.host, settings.port, os.environ.get(TOKEN, ""), settings.hosts)
    door.check()
    store = Store(store_folder)
    wanted = [_named(name, store) for name in names]
    bound = _bind(settings.host, settings.port)
    try:
        _serve(wanted, store, out, settings, door, Limits(**limits), bound)  # type: ignore[arg-type]
    finally:
        bound.close()


def _named(given: str, store: Store) -> tuple[str, Path]:
    """`NAME=MODEL`, or a model that is called as it was given; a folder by its last part."""
    name, equals, model = given.partition("=")
    if equals and name and "/" not in name:
        return name, _named(model, store)[1]
    if given.endswith(".gguf") and Path(given).is_file():
        return Path(given).stem, Path(given)
    folder = find_model(given, store)
    return (Path(given).name if Path(given).is_dir() else given), folder


def _bind(host: str, port: int) -> socket.socket:
    """The listening socket, bound before anything is loaded, so that a port in use costs no time."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise InputError(
            f"cannot listen there ({error.strerror})", where="--port", value=port, cure="choose another: --port 8001"
        ) from error
    return bound


def _serve(
    wanted: Sequence[tuple[str, Path]],
    store: Store,
    out: Path,
    settings: Settings,
    door: "Door",
    limits: "Limits",
    bound: socket.socket,
) -> None:
    import uvicorn

    from metier.serve.app import make_app
    from metier.serve.opening import Wanted, open_hosts
    from metier.serve.runs import Runs

    hosts = open_hosts(
        [Wanted(name, folder) for name, folder in wanted],
        numbers=settings.numbers,
        slots=settings.slots,
        waiting=settings.waiting,
    )
    app = make_app(hosts, door=door, limits=limits, runs=Runs(out, store))
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # addresses of requests may hold text
        server_header=False,
        timeout_graceful_shutdown=LAST_SECONDS,
        timeout_keep_alive=15,
        h11_max_incomplete_event_size=32_768,
    )
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    typer.echo(f"serving {', '.join(hosts)} at http://{shown}:{settings.port} (the page) and /v1 (OpenAI's protocol)")
    typer.echo(
        "Ctrl-C ends it. Nothing leaves this machine." if not door.token else "Ctrl-C ends it. A token is asked."
    )
    asyncio.run(_until_stopped(uvicorn.Server(config), bound))
    for host in {id(host): host for host in hosts.values()}.values():
        host.close()


async def _until_stopped(server: "uvicorn.Server", bound: socket.socket) -> None:
    await server.serve(sockets=[bound])
