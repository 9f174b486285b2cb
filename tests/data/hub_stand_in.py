"""A hub of one data set on this machine, with as much of its interface as reading needs."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def stand_in(name: str, files: Mapping[str, bytes], asked: list[str]) -> Iterator[str]:
    """The address of a hub that has the data set `name`. asked: takes every request's line."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Tests are quiet."""

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            self.answer(body)

        def answer(self, body: str = "") -> None:
            path = unquote(urlsplit(self.path).path)
            asked.append(f"{self.command} {path}")
            resolved = re.fullmatch(rf"/datasets/{name}/resolve/[^/]+/(.+)", path)
            if resolved:
                self.file(files.get(resolved[1]))
            elif re.fullmatch(rf"/api/datasets/{name}(/revision/(main|{COMMIT}))?", path):
                siblings = [{"rfilename": file} for file in files]
                self.json({"id": name, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings})
            elif re.fullmatch(rf"/api/datasets/{name}/tree/[^/]+(/.*)?", path):
                below = path.split("/tree/", 1)[1].partition("/")[2]
                self.json(children(below))
            elif re.fullmatch(rf"/api/datasets/{name}/paths-info/[^/]+", path):
                wanted = json.loads(body)["paths"] if body.startswith("{") else re.findall(r"paths=([^&]+)", body)
                self.json([entry(f) for f in files if f in map(unquote, wanted)])
            else:
                self.send(404, b"{}", {"X-Error-Code": "RepoNotFound", "Content-Type": "application/json"})

        def json(self, value: Any) -> None:
            self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def file(self, content: bytes | None) -> None:
            if content is None:
                self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            headers = {"ETag": f'"{digest(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if span is None:
                self.send(200, content, headers)
                return
            first, last = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            self.send(206, content[first : last + 1], headers)

        def send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    def entry(file: str) -> dict[str, Any]:
        return {"type": "file", "path": file, "size": len(files[file]), "oid": digest(files[file])}

    def children(folder: str) -> list[dict[str, Any]]:
        """What lies directly in a folder, folders too."""
        prefix = f"{folder}/" if folder else ""
        inside = [file for file in files if file.startswith(prefix)]
        folders = {prefix + f.removeprefix(prefix).split("/")[0] for f in inside if "/" in f.removeprefix(prefix)}
        plain = [entry(file) for file in inside if "/" not in file.removeprefix(prefix)]
        return [*plain, *({"type": "directory", "path": f, "oid": COMMIT, "size": 0} for f in sorted(folders))]

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
