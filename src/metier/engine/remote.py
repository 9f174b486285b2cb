"""Answers from a server: llama.cpp, vLLM, Ollama or a paid service that speaks OpenAI's chat completions, or Gemini.

Nothing is contacted unless a recipe names it. Busy servers (429), failing ones (5xx), time-outs, broken connections and
answers that are no whole JSON are tried again, later each time with some chance in it, or when the server says
(Retry-After). The key comes from the environment alone; it is sent to the endpoint, redirects are not followed, and it
stands in no record, event or error.

Refuses, before anything is paid for: an address that is none or holds a key, a variable that is not set, a key that is
not accepted, a model that the server does not list, a server that tells no log-probabilities where they are wanted.
Costs a thread for each request under way. Answers are given as they come; whoever keeps them asks nothing twice, and
with a `cache` replies are kept here too, for all later runs.
"""

import json
import random
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import exp, log
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from metier.core.errors import EndpointError, InputError, Interrupted, nearest, shorten
from metier.engine.dialects import ODD, Body, Reply, Wanted, dialect
from metier.engine.endpoint import Endpoint
from metier.engine.interface import Asking, Choice, Prompts, Said, Schema, Spent, best
from metier.engine.pace import Meter, Pace
from metier.engine.replies import Replies, keys
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
RETOLD = 2
"""How often an answer that should be JSON and is none is asked for again; then it is given as it is."""
TOP = 20
"""Likeliest tokens to be told of: as many as services give."""


@dataclass(frozen=True)
class _Wait:
    """Try again, for this reason. after: seconds that the server asks for."""

    reason: str
    after: float | None = None


@dataclass(frozen=True)
class _Got:
    """A reply, how long it took, and whether it was there from an earlier run."""

    reply: Reply
    seconds: float
    kept: bool = False

    @property
    def said(self) -> Said:
        one = self.reply
        return Said(one.text, one.tokens, one.stopped, self.seconds, read=one.read, kept=self.kept)


@dataclass(frozen=True)
class _Question:
    """A request as it is sent, its key among the kept replies, and what its answer must be."""

    body: Body
    key: str
    size: int
    tokens: int
    wanted: Wanted


class RemoteEngine:
    """Answers through one endpoint. cache: the folder for replies that later runs shall find."""

    def __init__(self, endpoint: Endpoint, asking: Asking, *, cache: Path | None = None) -> None:
        endpoint.check()
        self._endpoint = endpoint
        self._asking = asking
        self._key = endpoint.key()
        self._halt = threading.Event()
        self._dialect = dialect(endpoint)
        self._meter = Meter(endpoint)
        self._pace = Pace(endpoint.requests_per_minute, self._halt.wait)
        self._cache = cache

    @property
    def spent(self) -> Spent:
        """What was asked and what it cost."""
        return self._meter.spent

    @property
    def retries(self) -> int:
        """How many requests had to be made again."""
        return self.spent.retries

    def check(self, *, likelihoods: bool = False) -> None:
        """Ask the server for its models. Raises InputError where it cannot be reached, or lacks the key or model.

        likelihoods: also ask for one token, to see whether the server tells log-probabilities; InputError where not.
        """
        import httpx

        self._halt.clear()
        with self._client(CHECK_SECONDS) as client:
            try:
                response = client.get("models", params={"pageSize": 1000} if self._endpoint.api == "gemini" else None)
            except httpx.HTTPError as error:
                raise InputError(
                    f"the endpoint cannot be reached ({self._clean(str(error) or type(error).__name__)})",
                    where=self._endpoint.endpoint,
                    cure="start the server, or correct its address",
                ) from None
        if self._dialect.refuses_key(response.status_code, response.text):
            raise self._refused(response)
        try:
            known = self._dialect.names(response.json()) if response.status_code == 200 else []
        except ODD:
            known = []  # a server need not list its models
        if known and self._endpoint.model.removeprefix("models/") not in known:
            raise InputError(
                "the endpoint has no such model",
                where=self._endpoint.endpoint,
                value=self._endpoint.model,
                cure=nearest(self._endpoint.model, known[:50]),
            )
        if likelihoods:
            ask = [(Message("user", "Reply with the letter A."),)]
            for _ in self._replies(self._questions(ask, [Wanted(top=TOP)], 1), (), None):
                pass

    def answers(
        self,
        prompts: Prompts,
        *,
        schema: Schema | None = None,
        done: Collection[int] = (),
        should_stop: Callable[[], bool] | None = None,
    ) -> Iterator[list[tuple[int, Said]]]:
        """As `interface.Engine.answers`. Raises EndpointError where an answer cannot be had.

        Asked to stop, or failing, it waits a little for the answers under way: they are paid for. With a schema, an
        answer that is no JSON object is asked for again, and given as it is in the end.
        """
        wanted = [Wanted(schema)] * len(prompts)
        for part in self._replies(self._questions(prompts, wanted), done, should_stop):
            yield [(index, got.said) for index, got in part]

    def likelihoods(
        self,
        prompts: Prompts,
        continuations: Sequence[Sequence[str]],
        *,
        done: Collection[int] = (),
        should_stop: Callable[[], bool] | None = None,
    ) -> Iterator[list[tuple[int, tuple[float, ...]]]]:
        """As `interface.Engine.likelihoods`, by the likeliest first tokens that the server tells.

        A continuation that is not among them gets the least likely one's figure, which its own does not exceed. So this
        is for letters and other labels of one token, or whose first tokens differ.
        """
        for part in self._by_token(prompts, continuations, done, should_stop):
            yield [(index, choice.logprobs or ()) for index, choice in part]

    def choices(
        self,
        prompts: Prompts,
        labels: Sequence[Sequence[str]],
        *,
        done: Collection[int] = (),
        should_stop: Callable[[], bool] | None = None,
    ) -> Iterator[list[tuple[int, Choice]]]:
        """As `interface.Engine.choices`; by the endpoint's setting `choose`."""
        if self._endpoint.choose == "logprobs":
            yield from self._by_token(prompts, labels, done, should_stop)
            return
        asked = [_told_form(prompt, known) for prompt, known in zip(prompts, labels, strict=True)]
        wanted = [Wanted(choice_schema(known)) for known in labels]
        for part in self._replies(self._questions(asked, wanted), done, should_stop):
            yield [(index, Choice(_label_in(got.reply.text, labels[index]), None, got.said)) for index, got in part]

    def _by_token(
        self,
        prompts: Prompts,
        labels: Sequence[Sequence[str]],
        done: Collection[int],
        should_stop: Callable[[], bool] | None,
    ) -> Iterator[list[tuple[int, Choice]]]:
        questions = self._questions(prompts, [Wanted(top=TOP)] * len(prompts), 1)
        for part in self._replies(questions, done, should_stop):
            made = []
            for index, got in part:
                values, there = label_logprobs(got.reply.tops or {}, labels[index])
                made.append((index, Choice(best(values) if there else None, values, got.said)))
            yield made

    def _questions(self, prompts: Prompts, wanted: Sequence[Wanted], tokens: int | None = None) -> list[_Question]:
        asking = self._asking if tokens is None else replace(self._asking, max_new_tokens=tokens)
        bodies = [
            self._dialect.body(prompt, asking, index, want)
            for index, (prompt, want) in enumerate(zip(prompts, wanted, strict=True))
        ]
        sizes = [sum(len(message.content) for message in prompt) for prompt in prompts]
        named = keys(f"{self._endpoint.api} {self._endpoint.endpoint.rstrip('/')} {self._dialect.path}", bodies)
        return [
            _Question(body, key, size, asking.max_new_tokens, want)
            for body, key, size, want in zip(bodies, named, sizes, wanted, strict=True)
        ]

    def _replies(
        self, questions: Sequence[_Question], done: Collection[int], should_stop: Callable[[], bool] | None
    ) -> Iterator[list[tuple[int, _Got]]]:
        """Replies with their question's index, as they come."""
        left = [index for index in range(len(questions)) if index not in done]
        self._halt.clear()
        kept = None if self._cache is None else Replies(self._cache)
        pool = ThreadPoolExecutor(self._endpoint.concurrency, thread_name_prefix="endpoint")
        client = self._client(self._endpoint.timeout_seconds)
        running: dict[Future[_Got], int] = {}
        trouble: BaseException | None = None
        try:
            while left or running:
                while left and len(running) < self._endpoint.concurrency:
                    index = left.pop(0)
                    running[pool.submit(self._ask, client, questions[index], kept)] = index
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
            if kept is not None:
                wait(running, timeout=LAST_CALL)
                kept.close()

    def _client(self, timeout: float) -> "httpx.Client":
        import httpx

        base = self._endpoint.endpoint.rstrip("/") + "/"
        headers = self._dialect.headers(self._key)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self._endpoint.concurrency)
        return httpx.Client(base_url=base, headers=headers, timeout=timeout, limits=limits, follow_redirects=False)

    def _ask(self, client: "httpx.Client", question: _Question, kept: Replies | None) -> _Got:
        """One answer, from the kept ones or asked for as often as it takes."""
        known = kept.get(question.key) if kept is not None else None
        if known is not None:
            self._meter.known()
            return _Got(Reply(**known["reply"]), known["seconds"], kept=True)
        reserved, got = self._meter.reserve(question.size, question.tokens), None
        try:
            got = self._insist(client, question)
        finally:
            read, written = (got.reply.read, got.reply.tokens) if got else (0, 0)
            self._meter.settle(reserved, read, written, answered=got is not None)
        if kept is not None:
            kept.put(question.key, {"reply": asdict(got.reply), "seconds": got.seconds})
        return got

    def _insist(self, client: "httpx.Client", question: _Question) -> _Got:
        last, tries, odd = "not asked", self._endpoint.tries, 0
        for attempt in range(tries):
            if not self._pace.wait():
                break
            started = perf_counter()
            got = self._once(client, question)
            if isinstance(got, Reply):
                seconds = perf_counter() - started
                if question.wanted.schema is None or odd >= min(RETOLD, tries - 1) or _is_object(got.text):
                    return _Got(got, seconds)
                odd += 1
                self._meter.settle(0.0, got.read, got.tokens, answered=False)  # it is paid for all the same
                got = _Wait(f"not a JSON object: {self._clean(got.text)}")
            last = got.reason
            if attempt + 1 < tries and not self._pause(attempt, got.after):
                break
        raise EndpointError(
            f"the endpoint gave no answer ({last})",
            where=self._endpoint.endpoint,
            cure="run the same command again: the answers that came are kept",
        )

    def _once(self, client: "httpx.Client", question: _Question) -> Reply | _Wait:
        import httpx

        try:
            response = client.post(self._dialect.path, json=question.body)
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
            reply = self._dialect.reply(response.json())
        except ODD:
            return _Wait(f"not an answer: {self._excerpt(response)}")
        if question.wanted.top and reply.tops is None:
            raise InputError(
                "the endpoint tells no log-probabilities",
                where=self._endpoint.endpoint,
                value=self._endpoint.model,
                cure="set `choose: json`, or use a server that does (vLLM, llama.cpp)",
            )
        return reply

    def _pause(self, attempt: int, after: float | None) -> bool:
        """Wait before the next try; False where it is not worth it."""
        if after is not None and after > MOST_PATIENCE:
            return False
        self._meter.again()
        wanted = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.0)
        return not self._halt.wait(max(wanted, after or 0.0))

    def _refused(self, response: "httpx.Response") -> InputError:
        status = response.status_code
        says = f"status {status}: {self._excerpt(response)}"
        where = self._endpoint.endpoint
        if self._dialect.refuses_key(status, response.text):
            named = f"the key in {self._endpoint.key_env}" if self._key else "a key: name its variable as key_env"
            return InputError(f"the endpoint does not let us in ({says})", where=where, cure=f"check {named}")
        cure = "check the address (it ends in the version, such as /v1), the model's name, and that the text fits it"
        return InputError(f"the endpoint refuses the question ({says})", where=where, cure=cure)

    def _excerpt(self, response: "httpx.Response") -> str:
        try:
            text = self._dialect.error(json.loads(response.text))
        except ODD:
            text = response.text
        return self._clean(text)

    def _clean(self, text: str) -> str:
        """What a server says, shortened, without the key: some repeat it."""
        return shorten(text.replace(self._key, "***") if self._key else text, 200)


def choice_schema(labels: Sequence[str]) -> Schema:
    """Of an object whose `choice` is one of the labels."""
    return {
        "type": "object",
        "properties": {"choice": {"type": "string", "enum": list(labels)}},
        "required": ["choice"],
        "additionalProperties": False,
    }


def json_object(text: str) -> dict[str, Any] | None:
    """The one JSON object that a text is, alone or in a code fence; None where it is anything else."""
    bare = text.strip()
    if bare.startswith("```") and bare.endswith("```"):
        bare = bare.strip("`").removeprefix("json").strip()
    try:
        value = json.loads(bare)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def label_logprobs(tops: Mapping[str, float], labels: Sequence[str]) -> tuple[tuple[float, ...], bool]:
    """The log-probability of each label by the likeliest first tokens, and whether any of them is there.

    A token counts for the label that begins with it, where that is one alone; space and quotes around it do not.
    """
    sums = [0.0] * len(labels)
    for token, value in tops.items():
        bare = token.strip().strip("\"'▁Ġ").strip()
        fitting = [i for i, label in enumerate(labels) if bare and label.startswith(bare)]
        if len(fitting) == 1:
            sums[fitting[0]] += exp(value)
    floor = min(tops.values(), default=0.0)
    return tuple(log(total) if total > 0 else floor for total in sums), any(sums)


def _told_form(prompt: Sequence[Message], labels: Sequence[str]) -> tuple[Message, ...]:
    *before, last = prompt
    form = f'Reply with JSON alone: {{"choice": ...}}, where ... is one of {json.dumps(list(labels))}.'
    return (*before, Message(last.role, f"{last.content}\n\n{form}"))


def _label_in(text: str, labels: Sequence[str]) -> int | None:
    value = json_object(text)
    named = None if value is None else value.get("choice")
    return labels.index(named) if isinstance(named, str) and named in labels else None


def _is_object(text: str) -> bool:
    return json_object(text) is not None


def _gather(
    running: dict[Future[_Got], int], finished: Collection[Future[_Got]]
) -> tuple[list[tuple[int, _Got]], BaseException | None]:
    """Take the finished requests out of those running: their replies, and the first thing that went wrong."""
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
