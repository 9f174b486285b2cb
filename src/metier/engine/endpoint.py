"""What a recipe says of a model behind an endpoint: where it is, how it is spoken to, and what it may cost.

The key comes from the environment alone: a recipe names its variable. Imports no HTTP client.
"""

import os
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field

from metier.core.errors import RecipeError
from metier.core.stage import Config, Runtime

GEMINI = "https://generativelanguage.googleapis.com/v1beta"
"""Where Gemini's own API is."""
CHARACTERS_PER_TOKEN = 3
"""For estimates beforehand, on the safe side: English has about 4."""

SECRETS = frozenset(
    {"key", "api_key", "apikey", "x_api_key", "x_goog_api_key", "authorization", "access_token", "token"}
)
"""Names that a request's own field would have if it held a key."""


class Prices(Config):
    """What a million tokens cost, in whatever currency; figures are in the same."""

    read: float = Field(ge=0)
    """Of the prompts, a million tokens."""
    written: float = Field(ge=0)
    """Of the answers, a million tokens."""

    def of(self, read: int, written: int) -> float:
        """The cost of so many tokens."""
        return (self.read * read + self.written * written) / 1e6


class Endpoint(Config):
    """A model behind an endpoint that speaks OpenAI's chat completions, or Gemini's own API."""

    elsewhere: ClassVar[bool] = True

    endpoint: str
    """The address up to the version: `http://127.0.0.1:8080/v1`."""
    model: str = Field(min_length=1)
    """The model's name there."""
    name: str | None = Field(None, min_length=1)
    """What it is called in results; the model's name where nothing is given."""
    api: Literal["openai", "gemini"] = "openai"
    """How it is spoken to: as OpenAI's chat completions (vLLM, llama.cpp, Ollama, most services), or as Gemini's own
    `generateContent` (address: https://generativelanguage.googleapis.com/v1beta)."""
    constrain: Literal["schema", "object", "prompt"] = "schema"
    """How the server is told that an answer has to be JSON of a given form: `schema` sends it as OpenAI does
    (response_format json_schema), `object` as llama-cpp-python's server takes it (json_object with a schema), `prompt`
    sends nothing, for servers that know neither: the prompt alone says it, and more answers will be none."""
    choose: Literal["json", "logprobs"] = "json"
    """How a label is taken: `json` asks for it as JSON held to the labels; `logprobs` compares the log-probabilities of
    the answer's first token, which takes a server that tells them (vLLM, llama.cpp)."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Put into every request as it is, over what stands there; null takes a key out. For what one server wants:
    `{max_tokens: null, max_completion_tokens: 64}`, `{reasoning_effort: low}`."""
    key_env: Annotated[str | None, Runtime()] = None
    """The environment variable that holds the key; the key itself stands nowhere."""
    timeout_seconds: Annotated[float, Runtime()] = Field(120.0, gt=0)
    """A request without an answer is given up after so long, and made again."""
    tries: Annotated[int, Runtime()] = Field(6, ge=1)
    """How often a request is made at most."""
    concurrency: Annotated[int, Runtime()] = Field(4, ge=1, le=64)
    """Requests under way at a time."""
    requests_per_minute: Annotated[float | None, Runtime()] = Field(None, gt=0)
    """No more than so many requests are begun in a minute, evenly spaced; tries count."""
    prices: Annotated[Prices | None, Runtime()] = None
    """What tokens cost there, `{read: 0.15, written: 0.6}` for a million each: then the cost is told."""
    budget: Annotated[float | None, Runtime()] = Field(None, gt=0)
    """The step stops, keeping what it has, before it would spend more than this on the endpoint; takes `prices`."""

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
        for name in self.extra:
            if name.lower().replace("-", "_") in SECRETS:
                cure = "leave it out, and name the key's environment variable as key_env"
                raise RecipeError("a recipe holds no key", where=f"extra.{name}", cure=cure)
        if self.budget is not None and self.prices is None:
            cure = "add `prices: {read: ..., written: ...}`, for a million tokens each"
            raise RecipeError(
                "without prices nobody can hold to a budget", where="budget", value=self.budget, cure=cure
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

    def most(self, characters: int, max_new_tokens: int, questions: int = 1) -> float | None:
        """What so many questions of so many characters in all may cost at most; None without prices."""
        if self.prices is None:
            return None
        read = characters // CHARACTERS_PER_TOKEN + 64 * questions
        return self.prices.of(read, max_new_tokens * questions)
