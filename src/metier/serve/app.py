"""The application: OpenAI's endpoints, health and metrics, and what the web page reads.

POST /v1/chat/completions, /v1/completions     answers, whole or streamed
GET  /v1/models, /v1/models/{id}               what is served
GET  /health, /metrics                         for whoever watches it
GET  /                                         the page, with its files under /page/
GET  /page-data/...                            the page's own questions: runs, progress, examples, reports
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from metier import __version__
from metier.core.errors import nearest
from metier.serve.asking import Contender, Piece
from metier.serve.counters import Counters
from metier.serve.guard import Door, Guard, Limits
from metier.serve.hosting import Host
from metier.serve.protocol import Asked, ChatAsked, RequestError, Row, TextAsked, Writing, usage
from metier.serve.runs import Runs

PAGE = Path(__file__).parent / "page"
PAGE_FILES = {"app.js": "text/javascript", "style.css": "text/css", "icon.svg": "image/svg+xml"}
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; sandbox allow-scripts"
)
"""A report is a page of its own: it may run the script that it brings, and reach nothing, this server included."""


def make_app(hosts: Mapping[str, Host], *, door: Door, limits: Limits, runs: Runs) -> Any:
    """The ASGI application. hosts: which host speaks for each name."""
    return Guard(_Server(hosts, limits, runs).app, door, limits)


class _Server:
    """The endpoints and what they share."""

    def __init__(self, hosts: Mapping[str, Host], limits: Limits, runs: Runs) -> None:
        self.counters = Counters()
        self.runs = runs
        self.started = int(time.time())
        self.contenders = {name: Contender(name, host, limits, self.counters) for name, host in hosts.items()}
        distinct = list({id(host): host for host in hosts.values()}.values())
        self.counters.watch(lambda: sum(host.under_way for host in distinct))
        self.app = FastAPI(title="Metier", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
        self._routes()
        self._errors()

    def _routes(self) -> None:
        app = self.app
        app.post("/v1/chat/completions")(self.chat)
        app.post("/v1/completions")(self.complete)
        app.get("/v1/models")(self.models)
        app.get("/v1/models/{name:path}")(self.model)
        app.get("/health")(self.health)
        app.get("/metrics")(self.metrics)
        app.get("/")(self.page)
        app.get("/page/{name}")(self.page_file)
        app.get("/page-data/runs")(self.list_runs)
        app.get("/page-data/runs/{name}/leaderboard")(self.leaderboard)
        app.get("/page-data/runs/{name}/report")(self.report)
        app.get("/page-data/progress")(self.progress)
        app.get("/page-data/examples")(self.examples)

    def _errors(self) -> None:
        @self.app.exception_handler(RequestError)
        async def refused(_: Request, error: RequestError) -> Response:
            headers = {"retry-after": "1"} if error.status == 429 else {}
            return JSONResponse(error.body(), error.status, headers)

        @self.app.exception_handler(RequestValidationError)
        async def malformed(_: Request, error: RequestValidationError) -> Response:
            return JSONResponse(_malformed(error).body(), 400)

        @self.app.exception_handler(HTTPException)
        async def missing(_: Request, error: HTTPException) -> Response:
            return JSONResponse(RequestError(error.status_code, str(error.detail)).body(), error.status_code)

        @self.app.middleware("http")
        async def count(request: Request, call: Any) -> Response:
            response: Response = await call(request)
            route = request.scope.get("route")
            self.counters.request(getattr(route, "path", "unknown"), response.status_code)
            return response

    # --- answers ------------------------------------------------------------------------------------------------------

    def contender(self, name: str) -> Contender:
        """The one of that name."""
        found = self.contenders.get(name)
        if found is None:
            cure = nearest(name, self.contenders)
            what = f"the model {name!r} is not served here: {cure}"
            raise RequestError(404, what, param="model", code="model_not_found")
        return found

    async def chat(self, asked: ChatAsked, request: Request) -> Response:
        """`/v1/chat/completions`."""
        one = self.contender(asked.model)
        prompt = one.chat_prompt([message.noun() for message in asked.messages])
        return await self._answer("chat", one, asked, [prompt], asked.longest, asked.top, request)

    async def complete(self, asked: TextAsked, request: Request) -> Response:
        """`/v1/completions`."""
        one = self.contender(asked.model)
        prompts = [one.text_prompt(prompt) for prompt in asked.prompts()]
        if not prompts or not all(prompts):
            raise RequestError(400, "a prompt is empty", param="prompt")
        if len(prompts) > 1 and asked.stream:
            raise RequestError(400, "one prompt at a time can be streamed", param="prompt")
        return await self._answer("text", one, asked, prompts, asked.longest, asked.top, request)

    async def _answer(
        self,
        kind: Literal["chat", "text"],
        one: Contender,
        asked: Asked,
        prompts: list[list[int]],
        longest: int | None,
        top: int | None,
        request: Request,
    ) -> Response:
        wishes = [one.wish(prompt, asked, longest, top) for prompt in prompts]
        writing = Writing(kind, one.name)
        if asked.stream:
            told = bool(asked.stream_options and asked.stream_options.include_usage)
            pieces = one.answer(wishes[0])
            first = await anext(pieces)  # what is refused is refused with its status, not in the stream
            chunks = _stream(writing, first, pieces, len(prompts[0]), logprobs=top is not None, told=told)
            return StreamingResponse(chunks, media_type="text/event-stream")
        made = asyncio.gather(*(_whole(one.answer(wish)) for wish in wishes))
        answers = await _while_connected(made, request)
        if answers is None:
            return Response(status_code=499)
        choices = [
            writing.choice(i, text, last.finish or "stop", found if top is not None else None)
            for i, (text, last, found) in enumerate(answers)
        ]
        used = usage(sum(map(len, prompts)), sum(last.tokens for _, last, _ in answers))
        return JSONResponse(writing.whole(choices, used))

    # --- what is there ------------------------------------------------------------------------------------------------

    async def models(self) -> Row:
        """`/v1/models`."""
        return {"object": "list", "data": [self._card(name) for name in self.contenders]}

    async def model(self, name: str) -> Row:
        """`/v1/models/{id}`."""
        return self._card(self.contender(name).name)

    def _card(self, name: str) -> Row:
        one = self.contenders[name]
        return {
            "id": name,
            "object": "model",
            "created": self.started,
            "owned_by": "metier",
            "context_length": one.context,
        }

    async def health(self) -> Row:
        """`/health`."""
        return {"status": "ok", "version": __version__}

    async def metrics(self) -> Response:
        """`/metrics`."""
        return Response(self.counters.text(), media_type="text/plain; version=0.0.4")

    # --- the page -----------------------------------------------------------------------------------------------------

    async def page(self) -> Response:
        """The web page."""
        return Response((PAGE / "index.html").read_bytes(), media_type="text/html; charset=utf-8")

    async def page_file(self, name: str) -> Response:
        """A file of the page."""
        if name not in PAGE_FILES:
            raise RequestError(404, "there is no such file")
        return Response((PAGE / name).read_bytes(), media_type=f"{PAGE_FILES[name]}; charset=utf-8")

    async def list_runs(self) -> Row:
        """The runs that were published, newest first."""
        return {"runs": await asyncio.to_thread(self.runs.published)}

    async def leaderboard(self, name: str) -> Response:
        """A run's leaderboard, as it was published."""
        found = await asyncio.to_thread(self.runs.leaderboard, name)
        if found is None:
            raise RequestError(404, "there is no such run, or it has no leaderboard")
        return Response(found, media_type="application/json")

    async def report(self, name: str) -> Response:
        """A run's report, as a page that can reach nothing."""
        found = await asyncio.to_thread(self.runs.report, name)
        if found is None:
            raise RequestError(404, "there is no such run, or it has no report")
        headers = {"content-security-policy": REPORT_POLICY}
        return Response(found, media_type="text/html; charset=utf-8", headers=headers)

    async def progress(self) -> Row:
        """What runs just now, by its latest events."""
        return {"steps": await asyncio.to_thread(self.runs.progress)}

    async def examples(self, model: str) -> Row:
        """Questions that a model's recipe was tested with."""
        return {"questions": await asyncio.to_thread(self.runs.questions, self.contender(model).name)}


async def _whole(pieces: AsyncIterator[Piece]) -> tuple[str, Piece, list[Any]]:
    """A whole answer: its text, its last piece, its log-probabilities."""
    text, found = "", list[Any]()
    last: Piece | None = None
    async for piece in pieces:
        text += piece.text
        found += piece.logprobs
        last = piece
    assert last is not None
    return text, last, found


async def _while_connected(made: "asyncio.Future[list[Any]]", request: Request) -> list[Any] | None:
    """What `made` gives; None, and it is ended, where the client leaves first."""

    async def gone() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(0.2)

    watch = asyncio.ensure_future(gone())
    both: set[asyncio.Future[Any]] = {made, watch}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        return made.result() if made.done() else None
    finally:
        watch.cancel()
        if not made.done():
            made.cancel()
            with contextlib.suppress(asyncio.CancelledError, RequestError):
                await made


async def _stream(
    writing: Writing, first: Piece, rest: AsyncIterator[Piece], read: int, *, logprobs: bool, told: bool
) -> AsyncIterator[str]:
    """Server-sent events: chunks, and [DONE] at the end. An error on the way is the last event."""
    opening = writing.first()
    if opening is not None:
        yield _event(opening)
    last = first
    try:
        yield _event(_chunk(writing, first, logprobs=logprobs))
        async for piece in rest:
            last = piece
            yield _event(_chunk(writing, piece, logprobs=logprobs))
    except RequestError as error:
        yield _event(error.body())
        return
    finally:
        await rest.aclose()  # type: ignore[attr-defined]
    if told:
        yield _event(writing.last(usage(read, last.tokens)))
    yield "data: [DONE]\n\n"


def _chunk(writing: Writing, piece: Piece, *, logprobs: bool) -> Row:
    return writing.piece(0, piece.text, piece.finish, piece.logprobs if logprobs else None)


def _event(row: Row) -> str:
    return f"data: {json.dumps(row, ensure_ascii=False)}\n\n"


def _malformed(error: RequestValidationError) -> RequestError:
    """The first thing that is wrong with a body, with its field and without its text."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return RequestError(400, "the body is not JSON", code="invalid_json")
    known = {"extra_forbidden": "this field is not known here", "missing": "this field is missing"}
    where = ".".join(place)
    return RequestError(400, f"{where}: {known.get(first['type'], first['msg'])}", param=where or None)
