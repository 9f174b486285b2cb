"""OpenAI's protocol: what a request may say, and what is answered, as far as a local model can keep it.

Fields that would change the answer and are not kept (`n` above 1, penalties, tools, response formats) are refused, not
ignored; so are unknown ones. `user` and `metadata` are accepted and not looked at. Source of the shapes: OpenAI's API
reference for chat completions and completions, as the `openai` client for Python reads them.
"""

import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from metier.engine.live import TokenLogprob
from metier.text.nouns import Message

Row = dict[str, Any]
MOST_STOPS = 4
MOST_TOP = 20
ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}


class RequestError(Exception):
    """Refused, in OpenAI's form. param: the field; code: a word that programs can look for."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> Row:
        """The error as OpenAI's clients read it."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class Part(BaseModel):
    """A piece of a message's content. Only text is understood."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A turn."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None

    def noun(self) -> Message:
        """As the templates take it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(ROLES[self.role], text)


class StreamOptions(BaseModel):
    """What a stream brings besides text."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class Asked(BaseModel):
    """What both kinds of completion have in common."""

    model_config = ConfigDict(extra="forbid")

    model: str
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: Literal[1] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        stops = [value] if isinstance(value, str) else value or []
        if len(stops) > MOST_STOPS:
            raise ValueError(f"at most {MOST_STOPS} stop strings")
        if any(not stop for stop in stops):
            raise ValueError("a stop string is not empty")
        return value

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ChatAsked(Asked):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_TOP)
    response_format: dict[Literal["type"], Literal["text"]] | None = None

    @property
    def longest(self) -> int | None:
        """The longest answer, where one is named."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def top(self) -> int | None:
        """How many likeliest tokens to tell; None: no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class TextAsked(Asked):
    """The body of `/v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = Field(16, ge=1)
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None

    @property
    def longest(self) -> int | None:
        """The longest answer, where one is named."""
        return self.max_tokens

    @property
    def top(self) -> int | None:
        """How many likeliest tokens to tell; None: no log-probabilities."""
        return self.logprobs

    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one, as text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[int(i) for i in self.prompt if isinstance(i, int)]]
        return [one for one in self.prompt if not isinstance(one, int)]


def usage(read: int, made: int) -> Row:
    """What a request cost, in tokens."""
    return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}


class Writing:
    """Writes the answers to one request, whole or in chunks. kind: `chat` or `text`."""

    def __init__(self, kind: Literal["chat", "text"], model: str) -> None:
        self.kind, self.model = kind, model
        self.id = ("chatcmpl-" if kind == "chat" else "cmpl-") + uuid.uuid4().hex
        self.created = int(time.time())

    def _frame(self, choices: list[Row], *, chunk: bool, used: Row | None = None) -> Row:
        name = "chat.completion" + (".chunk" if chunk else "") if self.kind == "chat" else "text_completion"
        frame: Row = {
            "id": self.id,
            "object": name,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "system_fingerprint": None,
        }
        return frame if used is None else frame | {"usage": used}

    def whole(self, choices: list[Row], used: Row) -> Row:
        """The body of an answer that is not streamed."""
        return self._frame(choices, chunk=False, used=used)

    def choice(self, index: int, text: str, finish: str, logprobs: Sequence[TokenLogprob] | None) -> Row:
        """One finished answer."""
        said: Row = (
            {"message": {"role": "assistant", "content": text, "refusal": None}}
            if self.kind == "chat"
            else {"text": text}
        )
        return {"index": index, **said, "logprobs": self._logprobs(logprobs), "finish_reason": finish}

    def first(self) -> Row | None:
        """A chat's stream opens by saying who speaks."""
        if self.kind == "text":
            return None
        delta = {"role": "assistant", "content": ""}
        return self._frame([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}], chunk=True)

    def piece(self, index: int, text: str, finish: str | None, logprobs: Sequence[TokenLogprob] | None) -> Row:
        """A piece of an answer."""
        said: Row = {"delta": {"content": text} if text else {}} if self.kind == "chat" else {"text": text}
        told = self._logprobs(logprobs)
        return self._frame([{"index": index, **said, "logprobs": told, "finish_reason": finish}], chunk=True)

    def last(self, used: Row) -> Row:
        """The chunk that tells the usage, where it was asked for."""
        return self._frame([], chunk=True, used=used)

    def _logprobs(self, found: Sequence[TokenLogprob] | None) -> Row | None:
        if found is None:
            return None
        if self.kind == "chat":
            return {"content": [_chat_logprob(one) for one in found], "refusal": None}
        return {
            "tokens": [one.text for one in found],
            "token_logprobs": [one.logprob for one in found],
            "top_logprobs": [{text: value for _, text, value in one.top} for one in found],
            "text_offset": _offsets([one.text for one in found]),
        }


def _chat_logprob(one: TokenLogprob) -> Row:
    def told(text: str, value: float) -> Row:
        return {"token": text, "logprob": value, "bytes": list(text.encode())}

    return told(one.text, one.logprob) | {"top_logprobs": [told(text, value) for _, text, value in one.top]}


def _offsets(texts: Sequence[str]) -> list[int]:
    found, at = [], 0
    for text in texts:
        found.append(at)
        at += len(text)
    return found
