"""The form of `metier label --web`: one answer at a time, on this machine alone.

Binds to 127.0.0.1. Every request carries a token that is printed with the address, compared in constant time; requests
that name another host are refused, so no page elsewhere can reach it by a name of its own (DNS rebinding). The page
runs one script of ours, named by its hash, and fetches nothing. Every text is escaped, and what hides is spelt out.
"""

import base64
import hashlib
import secrets
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jinja2
import typer

from metier.core.errors import InputError
from metier.judge.labelling import Desk, tally
from metier.report.wording import visible

TEMPLATES = Path(__file__).parent / "templates"
HOST = "127.0.0.1"
LARGEST_FORM = 4096
SCRIPT = (
    "addEventListener('keydown',e=>{if(e.ctrlKey||e.metaKey||e.altKey)return;"
    'const b=document.querySelector(`button[data-key="${e.key}"]`);if(b)b.click()})'
)


class Form:
    """The form as a function of requests. token: what every request has to carry."""

    def __init__(self, desk: Desk, token: str) -> None:
        self.desk = desk
        self.token = token
        self._lock = threading.Lock()
        self._template = _environment().get_template("label.html.j2")

    def page(self) -> str:
        """The next answer to label, or that all are done."""
        item = self.desk.next()
        number = None if item is None else self.desk.items.index(item)
        return self._template.render(
            desk=self.desk,
            item=item,
            number=number,
            token=self.token,
            tally=tally(self.desk),
            script=SCRIPT,
            policy=policy(),
        )

    def act(self, form: dict[str, str]) -> None:
        """What a button asks for. Raises InputError for what the page does not offer."""
        with self._lock:
            what = form.get("do", "")
            if what == "undo":
                self.desk.undo()
                return
            number = form.get("item", "")
            item = self.desk.find(int(number)) if number.isdecimal() and len(number) < 10 else None
            if item is None:
                raise InputError("no such answer", where="item", value=number)
            if what == "skip":
                self.desk.skip(item)
            elif what.startswith("label "):
                self.desk.give(item, what.removeprefix("label "))
            else:
                raise InputError("no such thing to do", where="do", value=what)

    def allowed(self, token: str) -> bool:
        """Whether that is the token."""
        return secrets.compare_digest(token.encode(), self.token.encode())


def policy() -> str:
    """The page's content security policy."""
    script = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script}'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    )


def _environment() -> jinja2.Environment:
    def shown(value: Any) -> Any:
        return value if hasattr(value, "__html__") else visible(str(value))

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def handler(form: Form, hosts: Callable[[], set[str]]) -> type[BaseHTTPRequestHandler]:
    """The requests that the form answers. hosts: what the server may be called."""

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "metier", ""

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            given = parse_qs(parts.query).get("token", [""])[0]
            if parts.path != "/":
                self._send(HTTPStatus.NOT_FOUND, "There is nothing here.")
            elif self._fits(given):
                self._send(HTTPStatus.OK, form.page(), "text/html")

        def do_POST(self) -> None:
            size = self.headers.get("Content-Length", "")
            if not size.isdecimal() or int(size) > LARGEST_FORM:
                self.close_connection = True
                return self._send(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "That is no label.")
            fields = parse_qs(self.rfile.read(int(size)).decode("utf-8", "replace"))
            given = {name: values[0] for name, values in fields.items()}
            if not self._fits(given.get("token", "")):
                return None
            try:
                form.act(given)
            except InputError as error:
                return self._send(HTTPStatus.BAD_REQUEST, str(error))
            self.send_response(HTTPStatus.SEE_OTHER)
            self.send_header("Location", f"/?token={form.token}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None

        def _fits(self, token: str) -> bool:
            """Whether the request comes from who was given the address."""
            if self.headers.get("Host", "") not in hosts():
                self._send(HTTPStatus.FORBIDDEN, "This is not the address that was printed.")
                return False
            if not form.allowed(token):
                self._send(HTTPStatus.FORBIDDEN, "The token is missing or wrong: use the address that was printed.")
                return False
            return True

        def _send(self, status: HTTPStatus, text: str, kind: str = "text/plain") -> None:
            data = text.encode("utf-8", "replace")
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Security-Policy", policy())
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Referrer-Policy", "no-referrer")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Nothing: the address holds the token."""

    return Handler


def open_server(desk: Desk, port: int, token: str | None = None) -> tuple[ThreadingHTTPServer, Form]:
    """The server, bound but not yet answering. Raises InputError where the port is taken."""
    form = Form(desk, token or secrets.token_urlsafe(24))
    names: set[str] = set()
    try:
        server = ThreadingHTTPServer((HOST, port), handler(form, lambda: names))
    except OSError as error:
        cure = "give another --port, or 0 for a free one"
        raise InputError(f"the port cannot be used: {error.strerror}", where="--port", value=port, cure=cure) from error
    server.daemon_threads = True
    names |= {f"{name}:{server.server_address[1]}" for name in (HOST, "localhost")}
    return server, form


def serve(desk: Desk, port: int) -> None:
    """Answer until interrupted."""
    server, form = open_server(desk, port)
    typer.echo(f"Label in the browser: http://{HOST}:{server.server_address[1]}/?token={form.token}")
    typer.echo("Ctrl-C ends; every label is kept as it is given.")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        typer.echo("")
    finally:
        server.server_close()
