"""Counts for Prometheus. No text of a request goes in: only how many, how long, and of which model."""

from typing import Any


class Counters:
    """The server's own counts, in a registry of their own."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self._registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self._registry}
        self._requests = Counter("metier_requests", "Requests, by path and status.", ["path", "status"], **made)
        self._read = Counter("metier_prompt_tokens", "Tokens of prompts.", ["model"], **made)
        self._made = Counter("metier_completion_tokens", "Tokens generated.", ["model"], **made)
        buckets = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
        self._first = Histogram(
            "metier_first_token_seconds", "From a request to its first token.", ["model"], buckets=buckets, **made
        )
        self._whole = Histogram(
            "metier_answer_seconds", "From a request to the end of its answer.", ["model"], buckets=buckets, **made
        )

    def watch(self, under_way: Any) -> None:
        """under_way: a function that says how many requests there are now."""
        from prometheus_client import Gauge

        Gauge("metier_requests_under_way", "Taken and not yet ended.", registry=self._registry).set_function(under_way)

    def request(self, path: str, status: int) -> None:
        """A request was answered."""
        self._requests.labels(path, str(status)).inc()

    def first_token(self, model: str, seconds: float) -> None:
        """An answer began."""
        self._first.labels(model).observe(seconds)

    def answered(self, model: str, read: int, made: int, seconds: float) -> None:
        """An answer ended."""
        self._read.labels(model).inc(read)
        self._made.labels(model).inc(made)
        self._whole.labels(model).observe(seconds)

    def text(self) -> bytes:
        """What Prometheus scrapes."""
        from prometheus_client import generate_latest

        return bytes(generate_latest(self._registry))
