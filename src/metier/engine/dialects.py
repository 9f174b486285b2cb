"""The two ways in which endpoints are spoken to: what a request looks like, and what a reply says.

`OpenAI`: chat completions, as vLLM, llama.cpp, Ollama, transformers and most services speak them. `Gemini`: Google's
own generateContent. Both are plain functions of values: who sends them is `engine.remote`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metier.engine.endpoint import Endpoint
from metier.engine.interface import Asking, Schema
from metier.text.artifacts import message_rows
from metier.text.nouns import Message

Body = dict[str, Any]
ODD = (ValueError, KeyError, TypeError, IndexError, AttributeError)
"""What reading a reply that is none raises."""


@dataclass(frozen=True)
class Wanted:
    """What an answer must be. schema: of the JSON object. top: the log-probabilities of so many first tokens."""

    schema: Schema | None = None
    top: int = 0


@dataclass(frozen=True)
class Reply:
    """What a server said. tops: log-probabilities of the likeliest first tokens, None where it gives none."""

    text: str
    tokens: int
    read: int
    stopped: bool
    tops: Mapping[str, float] | None = None


class OpenAI:
    """POST chat/completions."""

    key_header = "Authorization"

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    @property
    def path(self) -> str:
        """Where questions go, below the endpoint's address."""
        return "chat/completions"

    def headers(self, key: str) -> dict[str, str]:
        """What carries the key."""
        return {"Authorization": f"Bearer {key}"} if key else {}

    def names(self, value: Any) -> list[str]:
        """The models that a server lists."""
        return [str(row["id"]) for row in value["data"]]

    def body(self, prompt: Sequence[Message], asking: Asking, index: int, wanted: Wanted) -> Body:
        """One request."""
        body: Body = {
            "model": self._endpoint.model,
            "messages": message_rows(prompt),
            "max_tokens": asking.max_new_tokens,
            "temperature": asking.temperature,
            "stream": False,
        }
        if asking.temperature != 0:
            body |= {"top_p": asking.top_p, "seed": asking.seed + index}
        if wanted.top:
            body |= {"logprobs": True, "top_logprobs": wanted.top}
        if wanted.schema is not None and self._endpoint.constrain == "schema":
            named = {"name": "reply", "strict": True, "schema": wanted.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        elif wanted.schema is not None and self._endpoint.constrain == "object":
            body["response_format"] = {"type": "json_object", "schema": wanted.schema}
        return overlaid(body, self._endpoint.extra)

    def reply(self, value: Any) -> Reply:
        """What the server's JSON says. Raises one of ODD where it is no chat completion."""
        choice, usage = value["choices"][0], value.get("usage") or {}
        text = whole_text(choice["message"].get("content"))
        tokens = usage.get("completion_tokens")
        return Reply(
            text,
            tokens if isinstance(tokens, int) else len(text.split()),
            usage["prompt_tokens"] if isinstance(usage.get("prompt_tokens"), int) else 0,
            choice.get("finish_reason") == "stop",
            _tops(choice.get("logprobs")),
        )

    def error(self, value: Any) -> str:
        """The message in a server's error. Raises one of ODD."""
        return str(value["error"]["message"])

    def refuses_key(self, status: int, text: str) -> bool:  # noqa: ARG002
        """Whether a reply means that the key is missing or wrong."""
        return status in (401, 403)


def _tops(logprobs: Any) -> dict[str, float] | None:
    if not logprobs:
        return None
    listed = logprobs["content"][0]["top_logprobs"] if logprobs.get("content") else logprobs["top_logprobs"][0]
    if isinstance(listed, Mapping):  # the older form: text to number
        return {str(token): float(value) for token, value in listed.items()} or None
    return {str(one["token"]): float(one["logprob"]) for one in listed} or None


class Gemini:
    """POST models/<model>:generateContent. The key travels in a header, never in the address."""

    key_header = "x-goog-api-key"

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    @property
    def path(self) -> str:
        """Where questions go, below the endpoint's address."""
        return f"models/{self._endpoint.model.removeprefix('models/')}:generateContent"

    def headers(self, key: str) -> dict[str, str]:
        """What carries the key."""
        return {self.key_header: key} if key else {}

    def names(self, value: Any) -> list[str]:
        """The models that the service lists, up to a thousand (its first page)."""
        return [str(row["name"]).removeprefix("models/") for row in value["models"]]

    def body(self, prompt: Sequence[Message], asking: Asking, index: int, wanted: Wanted) -> Body:
        """One request. Messages of the system become the instruction; the assistant is called model."""
        config: Body = {"maxOutputTokens": asking.max_new_tokens, "temperature": asking.temperature}
        if asking.temperature != 0:
            config |= {"topP": asking.top_p, "seed": asking.seed + index}
        if wanted.top:
            config |= {"responseLogprobs": True, "logprobs": wanted.top}
        if wanted.schema is not None and self._endpoint.constrain != "prompt":
            config |= {"responseMimeType": "application/json", "responseJsonSchema": wanted.schema}
        roles = {"user": "user", "assistant": "model"}
        said = [m for m in prompt if m.role != "system"]
        body: Body = {"contents": [{"role": roles[m.role], "parts": [{"text": m.content}]} for m in said]}
        system = "\n\n".join(m.content for m in prompt if m.role == "system")
        if system:
            body["systemInstruction"] = {"parts": [{"text": system}]}
        return overlaid(body | {"generationConfig": config}, self._endpoint.extra)

    def reply(self, value: Any) -> Reply:
        """What the service's JSON says; a prompt or answer that it blocks is an empty answer, not stopped."""
        usage = value.get("usageMetadata") or {}
        read = int(usage.get("promptTokenCount") or 0)
        if not value.get("candidates"):
            value["promptFeedback"]["blockReason"]  # what has neither is no reply
            return Reply("", 0, read, False)
        one = value["candidates"][0]
        text = whole_text("".join(p.get("text") or "" for p in (one.get("content") or {}).get("parts") or ()))
        written = int(usage.get("candidatesTokenCount") or 0) + int(usage.get("thoughtsTokenCount") or 0)
        first = ((one.get("logprobsResult") or {}).get("topCandidates") or [None])[0]
        tops = {str(c["token"]): float(c["logProbability"]) for c in first["candidates"]} if first else None
        return Reply(text, written or len(text.split()), read, one.get("finishReason") == "STOP", tops)

    def error(self, value: Any) -> str:
        """The message in the service's error. Raises one of ODD."""
        return str(value["error"]["message"])

    def refuses_key(self, status: int, text: str) -> bool:
        """Whether a reply means that the key is missing or wrong; a wrong one is a bad request there."""
        return status in (401, 403) or (status == 400 and ("API_KEY_INVALID" in text or "API key not valid" in text))


Dialect = OpenAI | Gemini


def dialect(endpoint: Endpoint) -> Dialect:
    """How an endpoint is spoken to."""
    return Gemini(endpoint) if endpoint.api == "gemini" else OpenAI(endpoint)


def whole_text(value: Any) -> str:
    """A reply's text, without surrounding space and halves of characters."""
    return str(value or "").encode("utf-8", "replace").decode("utf-8").strip()


def overlaid(body: Body, extra: Mapping[str, Any]) -> Body:
    """The body with `extra` put over it, mappings merged, and what is None there taken out."""
    merged = dict(body)
    for name, value in extra.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, Mapping) and isinstance(merged.get(name), Mapping):
            merged[name] = overlaid(merged[name], value)
        else:
            merged[name] = value
    return merged
