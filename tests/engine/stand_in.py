"""A small server on this machine that answers as OpenAI's chat completions or Gemini do, or fails as told."""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS: tuple[int | str, ...] = (429, 500, "slow", "torn", "odd", "closed", "half")
"""Busy, failing, a time-out, JSON that is cut, JSON of another kind, a broken connection, an answer that is cut."""


class StandIn:
    """script: what to do with the next questions, one entry each: a status, `slow`, `torn`, `odd`, `closed` or `half`;
    then all is answered, but for a share `faults` of the questions, which get one of FAULTS by chance (`seed`).

    asked: the bodies. whole: those that got a whole answer. keys: the headers that carried a key. key: what it must be,
    where one is needed. answer: the text. tops: log-probabilities of first tokens; None where it tells none.
    """

    def __init__(
        self,
        *script: int | str,
        key: str = "",
        models: tuple[str, ...] = ("tiny",),
        after: str = "",
        faults: float = 0.0,
        seed: int = 0,
        delay: float = 0.02,
        slow: float = 1.0,
    ) -> None:
        self.script = list(script)
        self.key, self.models, self.after = key, models, after
        self.faults, self.delay, self.slow = faults, delay, slow
        self.asked: list[dict[str, Any]] = []
        self.whole: list[dict[str, Any]] = []
        self.failed: list[int | str] = []
        self.keys: list[str | None] = []
        self.paths: list[str] = []
        self.busiest = self._busy = 0
        self.answer: Callable[[dict[str, Any]], str] = lambda body: f"said: {last_words(body)}"
        self.tops: Callable[[dict[str, Any]], Mapping[str, float]] | None = None
        self._lock = threading.Lock()
        self._chance = random.Random(seed)
        self.url = ""

    def completion(self, body: dict[str, Any], *, half: bool = False) -> dict[str, Any]:
        text = self.answer(body)
        text = text[: len(text) // 2] if half else text
        usage = {"prompt_tokens": 7, "completion_tokens": len(text.split())}
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "length" if half else "stop",
        }
        if body.get("logprobs") and self.tops is not None:
            listed = [{"token": token, "logprob": value} for token, value in self.tops(body).items()]
            choice["logprobs"] = {"content": [{**listed[0], "top_logprobs": listed}]}
        return {"object": "chat.completion", "choices": [choice], "usage": usage}

    def gemini(self, body: dict[str, Any], *, half: bool = False) -> dict[str, Any]:
        text = self.answer(body)
        text = text[: len(text) // 2] if half else text
        one: dict[str, Any] = {
            "content": {"role": "model", "parts": [{"text": text}]},
            "finishReason": "MAX_TOKENS" if half else "STOP",
        }
        if body["generationConfig"].get("responseLogprobs") and self.tops is not None:
            listed = [{"token": token, "logProbability": value} for token, value in self.tops(body).items()]
            one["logprobsResult"] = {"topCandidates": [{"candidates": listed}]}
        usage = {"promptTokenCount": 7, "candidatesTokenCount": len(text.split())}
        return {"candidates": [one], "usageMetadata": usage}

    def handle(self, handler: BaseHTTPRequestHandler, body: dict[str, Any] | None) -> None:
        google = handler.path.startswith("/v1beta")
        with self._lock:
            self.paths.append(handler.path)
            self.keys.append(handler.headers.get("x-goog-api-key" if google else "Authorization"))
            if self.key and self.keys[-1] != (self.key if google else f"Bearer {self.key}"):
                said = {"error": {"message": f"API key not valid: {self.keys[-1]}"}}
                return self.send(handler, 400 if google else 401, json.dumps(said))
            if body is None:
                listed: Any = {"models": [{"name": f"models/{name}"} for name in self.models]}
                listed = listed if google else {"data": [{"id": name} for name in self.models]}
                return self.send(handler, 200, json.dumps(listed))
            self.asked.append(body)
            self._busy += 1
            self.busiest = max(self.busiest, self._busy)
            step = self._step()
        time.sleep(self.delay)
        with self._lock:
            self._busy -= 1
        make = self.gemini if google else self.completion
        whole = json.dumps(make(body, half=step == "half"))
        if step == "slow":
            time.sleep(self.slow)
        if step == "closed":
            handler.close_connection = True
            return handler.connection.close()
        text = {"torn": whole[:40], "odd": '{"choices": []}'}.get(str(step), whole)
        status = step if isinstance(step, int) else 200
        if status != 200:
            text = json.dumps({"error": {"message": f"failing with {status}"}})
        if step == 200:
            with self._lock:
                self.whole.append(body)
        return self.send(handler, status, text)

    def _step(self) -> int | str:
        step: int | str = self.script.pop(0) if self.script else 200
        if step == 200 and self.faults and self._chance.random() < self.faults:
            step = self._chance.choice(FAULTS)
        if step != 200:
            self.failed.append(step)
        return step

    def send(self, handler: BaseHTTPRequestHandler, status: int, text: str) -> None:
        data = text.encode()
        handler.send_response(status)
        if status == 429 and self.after:
            handler.send_header("Retry-After", self.after)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)


def last_words(body: dict[str, Any]) -> str:
    """What the last message of a request says, in either protocol."""
    if "messages" in body:
        return str(body["messages"][-1]["content"])
    return str(body["contents"][-1]["parts"][0]["text"])


@contextmanager
def serving(stand_in: StandIn, *, version: str = "v1") -> Iterator[StandIn]:
    """The server on a free port of the loopback. version: `v1`, or `v1beta` where it is to be Gemini."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet

        def do_GET(self) -> None:
            stand_in.handle(self, None)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with suppress(BrokenPipeError, ConnectionResetError, ValueError, OSError):  # who asked did not wait
                stand_in.handle(self, body)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    stand_in.url = f"http://127.0.0.1:{server.server_address[1]}/{version}"
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
