"""A small server on this machine that answers as OpenAI's chat completions do, or fails as told."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any, dict[str, str]]


class StandIn:
    """script: what to do with the next questions, one entry each: a status, `slow`, `torn`, `odd` or `closed`; then
    all is answered. asked: the bodies. keys: the Authorization headers. key: what it must be, where one is needed.
    """

    def __init__(self, *script: int | str, key: str = "", models: tuple[str, ...] = ("tiny",), after: str = "") -> None:
        self.script = list(script)
        self.key, self.models, self.after = key, models, after
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.busiest = self._busy = 0
        self.answer: Callable[[dict[str, Any]], str] = lambda body: f"said: {body['messages'][-1]['content']}"
        self._lock = threading.Lock()
        self.url = ""

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        text = self.answer(body)
        usage = {"prompt_tokens": 7, "completion_tokens": len(text.split())}
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return {"object": "chat.completion", "choices": [choice], "usage": usage}

    def handle(self, handler: BaseHTTPRequestHandler, body: dict[str, Any] | None) -> None:
        with self._lock:
            self.keys.append(handler.headers.get("Authorization"))
            if self.key and self.keys[-1] != f"Bearer {self.key}":
                said = {"error": {"message": f"Incorrect API key provided: {self.keys[-1]}"}}
                return self.send(handler, 401, json.dumps(said))
            if body is None:
                return self.send(handler, 200, json.dumps({"data": [{"id": name} for name in self.models]}))
            self.asked.append(body)
            self._busy += 1
            self.busiest = max(self.busiest, self._busy)
            step = self.script.pop(0) if self.script else 200
        time.sleep(0.02)
        with self._lock:
            self._busy -= 1
        whole = json.dumps(self.completion(body))
        if step == "slow":
            time.sleep(1.0)
        if step == "closed":
            return handler.connection.close()
        text = {"torn": whole[:40], "odd": '{"choices": []}'}.get(str(step), whole)
        status = step if isinstance(step, int) else 200
        if status != 200:
            text = json.dumps({"error": {"message": f"failing with {status}"}})
        return self.send(handler, status, text)

    def send(self, handler: BaseHTTPRequestHandler, status: int, text: str) -> None:
        data = text.encode()
        handler.send_response(status)
        if status == 429 and self.after:
            handler.send_header("Retry-After", self.after)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)


@contextmanager
def serving(stand_in: StandIn) -> Iterator[StandIn]:
    """The server on a free port of the loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            stand_in.handle(self, None)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with suppress(BrokenPipeError, ConnectionResetError):  # who asked did not wait
                stand_in.handle(self, body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    stand_in.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
