"""Answers from a server that speaks OpenAI's chat completions: llama.cpp, vLLM, Ollama, or a paid service.

Nothing is contacted unless a recipe names it. Busy servers (429), failing ones (5xx), time-outs, broken connections and
answers that are no whole JSON are tried again, later each time with some chance in it, or when the server says
(Retry-After). The key comes from the environment alone; it is sent to the endpoint, redirects are not followed, and it
stands in no record, event or error.

Refuses, before anything is paid for: an address that is none or holds a key, a variable that is not set, a key that is
not accepted, a model that the server does not list. Costs a thread for each request under way. Answers are given as
they come; whoever keeps them asks nothing twice.
"""

import json
import os
import random
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field

from metier.core.errors import EndpointError, InputError, Interrupted, RecipeError, nearest, shorten
from metier.core.stage import Config, Runtime
from metier.engine.interface import Asking, Said
from metier.text.artifacts import message_rows
from metier.text.nouns import Message

if TYPE_CHECKING:
    import httpx

AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
"""Statuses that may pass: busy, overloaded, restarting."""
FIRST_WAIT = 1.0
LONGEST_WAIT = 60.0
MOST_PATIENCE = 600.0
"""A server that asks for a longer pause is given up."""
LOOK = 0.2
"""How often, in seconds, a stop request is looked for while requests are under way."""
LAST_CALL = 10.0
"""How long answers under way, which are paid for, are waited for when asked to stop."""
CHECK_SECONDS = 10.0


class Endpoint(Config):
    """A model behind an OpenAI-compatible endpoint."""

    endpoint: str
    """The address up to the version: `http://127.0.0.1:8080/v1`."""
    model: str = Field(min_length=1)
    """The model's name there."""
    name: str | None = Field(None, min_length=1)
    """What it is called in results; the model's name where nothing is given."""
    key_env: Annotated[str | None, Runtime()] = None
    """The environment variable that holds the key; the key itself stands nowhere."""
    timeout_seconds: Annotated[float, Runtime()] = Field(120.0, gt=0)
    """A request without an answer is given up after so long, and made again."""
    tries: Annotated[int, Runtime()] = Field(6, ge=1)
    """How often a request is made at most."""
    concurrency: Annotated[int, Runtime()] = Field(4, ge=1, le=64)
    """Requests under way at a time."""

    @property
    def title(self) -> str:
        """What it is called in results."""
        return self.name or self.model

    def check(self) -> None:
        """Raise RecipeError for an address or key that cannot work. Contacts nobody."""
        try:
            parts = urlsplit(self.endpoint)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            usable = False
        if not usable:
            cure = "write it as http://127.0.0.1:8080/v1"
            raise RecipeError("not the address of an endpoint", where="endpoint", value=self.endpoint, cure=cure)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise RecipeError(
                "an endpoint's address holds no key or other secret",
                where="endpoint",
                cure="leave the address alone, and name the key's environment variable as key_env",
            )
        self.key()

    def key(self) -> str:
        """The key, or "" where none is needed. Raises RecipeError where its variable is not set."""
        if self.key_env is None:
            return ""
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise RecipeError(
                "the environment variable with the endpoint's key is not set",
                where="key_env",
                value=self.key_env,
                cure=f"export {self.key_env}=... before the run; the recipe names the variable, never the key",
            )
        return key


@dataclass(frozen=True)
class _Wait:
    """Try again, for this reason. after: seconds that the server asks for."""

    reason: str
    after: float | None = None


class RemoteEngine:
    """Answers through one endpoint."""

    def __init__(self, endpoint: Endpoint, asking: Asking) -> None:
        endpoint.check()
        self._endpoint = endpoint
        self._asking = asking
        self._key = endpoint.key()
        self._halt = threading.Event()
        self.retries = 0

    def check(self) -> None:
        """Ask the server for its models. Raises InputError where it cannot be reached, or lacks the key or model."""
        import httpx

        with self._client(CHECK_SECONDS) as client:
            try:
                response = client.get("models")
            except httpx.HTTPError as error:
                raise InputError(
                    f"the endpoint cannot be reached ({self._clean(str(error) or type(error).__name__)})",
                    where=self._endpoint.endpoint,
                    cure="start the server, or correct its address",
                ) from None
        if response.status_code in (401, 403):
            raise self._refused(response)
        try:
            known = [str(row["id"]) for row in response.json()["data"]] if response.status_code == 200 else []
        except (ValueError, KeyError, TypeError):
            return  # a server need not list its models
        if known and self._endpoint.model not in known:
            raise InputError(
                "the endpoint has no such model",
                where=self._endpoint.endpoint,
                value=self._endpoint.model,
                cure=nearest(self._endpoint.model, known[:50]),
            )

    def answers(
        self,
        prompts: Sequence[Sequence[Message]],
        *,
        done: Collection[int] = (),
        should_stop: Callable[[], bool] | None = None,
    ) -> Iterator[list[tuple[int, Said]]]:
        """As `interface.Engine.answers`. Raises EndpointError where an answer cannot be had.

        Asked to stop, or failing, it waits a little for the answers under way: they are paid for.
        """
        left = [index for index in range(len(prompts)) if index not in done]
        self._halt.clear()
        pool = ThreadPoolExecutor(self._endpoint.concurrency, thread_name_prefix="endpoint")
        client = self._client(self._endpoint.timeout_seconds)
        running: dict[Future[Said], int] = {}
        trouble: BaseException | None = None
        try:
            while left or running:
                while left and len(running) < self._endpoint.concurrency:
                    index = left.pop(0)
                    running[pool.submit(self._ask, client, prompts[index], index)] = index
                finished, _ = wait(running, timeout=LOOK, return_when=FIRST_COMPLETED)
                came, trouble = _gather(running, finished)
                trouble = trouble or _stop_request(should_stop)
                if came:
                    yield came
                if trouble is not None:
                    self._halt.set()
                    finished, _ = wait(running, timeout=LAST_CALL)
                    came, _ = _gather(running, finished)
                    if came:
                        yield came
                    raise trouble
        finally:
            self._halt.set()
            pool.shutdown(wait=False, cancel_futures=True)
            client.close()

    def _client(self, timeout: float) -> "httpx.Client":
        import httpx

        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        base = self._endpoint.endpoint.rstrip("/") + "/"
        return httpx.Client(base_url=base, headers=headers, timeout=timeout, follow_redirects=False)

    def _body(self, prompt: Sequence[Message], index: int) -> dict[str, Any]:
        asking = self._asking
        body: dict[str, Any] = {
            "model": self._endpoint.model,
            "messages": message_rows(prompt),
            "max_tokens": asking.max_new_tokens,
            "temperature": asking.temperature,
            "stream": False,
        }
        return body if asking.temperature == 0 else body | {"top_p": asking.top_p, "seed": asking.seed + index}

    def _ask(self, client: "httpx.Client", prompt: Sequence[Message], index: int) -> Said:
        """One answer, asked for as often as it takes."""
        body, last = self._body(prompt, index), "not asked"
        for attempt in range(self._endpoint.tries):
            started = perf_counter()
            got = self._once(client, body)
            if isinstance(got, dict):
                return _said(got, perf_counter() - started)
            last = got.reason
            if attempt + 1 < self._endpoint.tries and not self._pause(attempt, got.after):
                break
        raise EndpointError(
            f"the endpoint gave no answer ({last})",
            where=self._endpoint.endpoint,
            cure="run the same command again: the answers that came are kept",
        )

    def _once(self, client: "httpx.Client", body: dict[str, Any]) -> dict[str, Any] | _Wait:
        import httpx

        try:
            response = client.post("chat/completions", json=body)
        except httpx.TimeoutException:
            return _Wait(f"no answer in {self._endpoint.timeout_seconds:g} s")
        except httpx.TransportError as error:
            return _Wait(f"the connection failed: {self._clean(str(error) or type(error).__name__)}")
        if response.status_code in AGAIN:
            after = _retry_after(response.headers.get("retry-after"))
            return _Wait(f"status {response.status_code}: {self._excerpt(response)}", after)
        if response.status_code != 200:
            raise self._refused(response)
        try:
            value = response.json()
            value["choices"][0]["message"]
        except (ValueError, KeyError, TypeError, IndexError):
            return _Wait(f"not a chat completion: {self._excerpt(response)}")
        return dict(value)

    def _pause(self, attempt: int, after: float | None) -> bool:
        """Wait before the next try; False where it is not worth it."""
        if after is not None and after > MOST_PATIENCE:
            return False
        self.retries += 1
        wanted = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.0)
        return not self._halt.wait(max(wanted, after or 0.0))

    def _refused(self, response: "httpx.Response") -> InputError:
        status = response.status_code
        says = f"status {status}: {self._excerpt(response)}"
        where = self._endpoint.endpoint
        if status in (401, 403):
            named = f"the key in {self._endpoint.key_env}" if self._key else "a key: name its variable as key_env"
            return InputError(f"the endpoint does not let us in ({says})", where=where, cure=f"check {named}")
        cure = "check the address (it ends in the version, such as /v1) and the model's name"
        return InputError(f"the endpoint refuses the question ({says})", where=where, cure=cure)

    def _excerpt(self, response: "httpx.Response") -> str:
        try:
            text = str(json.loads(response.text)["error"]["message"])
        except (ValueError, KeyError, TypeError):
            text = response.text
        return self._clean(text)

    def _clean(self, text: str) -> str:
        """What a server says, shortened, without the key: some repeat it."""
        return shorten(text.replace(self._key, "***") if self._key else text, 200)


def _gather(
    running: dict[Future[Said], int], finished: Collection[Future[Said]]
) -> tuple[list[tuple[int, Said]], BaseException | None]:
    """Take the finished requests out of those running: their answers, and the first thing that went wrong."""
    came, trouble = [], None
    for future in finished:
        index = running.pop(future)
        error = future.exception()
        if error is None:
            came.append((index, future.result()))
        else:
            trouble = trouble or error
    return sorted(came, key=lambda pair: pair[0]), trouble


def _stop_request(should_stop: Callable[[], bool] | None) -> Interrupted | None:
    try:
        asked = should_stop is not None and should_stop()
    except Interrupted as error:
        return error
    return Interrupted("asking was stopped", cure="run the same command again") if asked else None


def _said(value: dict[str, Any], seconds: float) -> Said:
    choice, usage = value["choices"][0], value.get("usage") or {}
    text = str(choice["message"].get("content") or "").encode("utf-8", "replace").decode("utf-8")  # half characters
    tokens = usage.get("completion_tokens")
    return Said(
        text.strip(),
        tokens if isinstance(tokens, int) else len(text.split()),
        choice.get("finish_reason") == "stop",
        seconds,
        read=usage["prompt_tokens"] if isinstance(usage.get("prompt_tokens"), int) else 0,
    )


def _retry_after(text: str | None) -> float | None:
    """Seconds to wait: given as such, or as a date."""
    if not text:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        then = parsedate_to_datetime(text)
    except ValueError:
        return None
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return max(0.0, (then - datetime.now(UTC)).total_seconds())
