"""How quick and how steady the server is: `python -m benchmarks.serving [first page throughput soak]`.

first       from a request to its first token, the seedling, one client (median of 30)
page        from asking for the page to a page that can be used, in a headless browser (median of 5)
throughput  tokens a second with 8 requests at a time over one at a time, TinyLlama's shape with 6 layers, in turn
soak        10,000 requests from 16 clients, among them cancelled ones, oversize and broken bodies and slow readers: no
            wrong answer, no crash, no growth

Everything stays on the loopback interface. Rows go to `benchmarks/results/serving.json`.
"""

import argparse
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx
import psutil

from benchmarks.rows import Row, write

QUESTIONS = [
    f"{word} {thing}?"
    for word in ("What is", "Where lives", "Who eats", "How big is")
    for thing in ("a fox", "the owl", "grass", "a crab", "the moon", "bread")
]
SOAK = 10_000
CLIENTS = 16
WARM = 1_000


@contextmanager
def served(*arguments: str) -> Iterator[tuple[str, psutil.Process]]:
    """`metier serve` in a process of its own: its address, and the process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("metier")), "serve", *arguments, "--port", str(port)]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
        address = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 180
            while True:
                try:
                    httpx.get(f"{address}/health")
                    break
                except httpx.TransportError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise SystemExit("the server did not come up") from None
                    time.sleep(0.1)
            yield address, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(timeout=30)


def body(question: str, **more: object) -> dict[str, object]:
    """A request to the model named `m`."""
    return {"model": "m", "messages": [{"role": "user", "content": question}], "max_tokens": 16, **more}


def first() -> list[Row]:
    """From sending a request to the first chunk with text."""
    times = []
    with served("m=seedling") as (address, _), httpx.Client(base_url=address, timeout=60) as http:
        for i in range(33):
            start = time.perf_counter()
            with http.stream("POST", "/v1/chat/completions", json=body(QUESTIONS[i % 24], stream=True)) as stream:
                for line in stream.iter_lines():
                    if '"content": "' in line and '"content": ""' not in line:
                        break
            times.append(time.perf_counter() - start)
    found = 1000 * median(times[3:])
    return [Row("first token of the seedling", found, 100.0, "ms", "lower", n=30)]


def page() -> list[Row]:
    """Until the models are listed in a headless browser that is already open."""
    from playwright.sync_api import sync_playwright

    times = []
    with served("m=seedling") as (address, _), sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for _ in range(6):
            tab = browser.new_page()
            start = time.perf_counter()
            tab.goto(address)
            tab.wait_for_selector("#model option", state="attached")
            times.append(time.perf_counter() - start)
            tab.close()
        browser.close()
    return [Row("web page ready", median(times[1:]), 1.0, "s", "lower", n=5)]


def throughput(rounds: int = 3) -> list[Row]:
    """Eight at a time over one after another, in turn."""
    from benchmarks import work

    def tokens(http: httpx.Client, question: str) -> int:
        got = http.post("/v1/chat/completions", json=body(question, max_tokens=24)).json()
        return int(got["usage"]["completion_tokens"])

    ratios = []
    with served(f"m={work.model('tinyllama6')}") as (address, _), httpx.Client(base_url=address, timeout=300) as http:
        tokens(http, QUESTIONS[0])
        for _ in range(rounds):
            speeds = []
            for at_once in (1, 8):
                start = time.perf_counter()
                with ThreadPoolExecutor(at_once) as pool:
                    made = sum(pool.map(lambda q: tokens(http, q), QUESTIONS[: 4 * at_once if at_once == 1 else 16]))
                speeds.append(made / (time.perf_counter() - start))
            ratios.append(speeds[1] / speeds[0])
            print(f"one at a time {speeds[0]:.1f} tokens/s, eight {speeds[1]:.1f}", flush=True)
    case = "throughput at 8 requests at a time over one, TinyLlama's shape with 6 layers"
    return [Row(case, median(ratios), 3.0, "ratio", "higher", "serial", n=rounds, interval=(min(ratios), max(ratios)))]


def short(question: str, **more: object) -> dict[str, object]:
    """A request with a short answer: what matters is how many there are."""
    return body(question, max_tokens=8, **more)


def soak() -> list[Row]:
    """Requests of every kind; each right answer is compared with the one that the server gave when it was alone."""
    seen: Counter[str] = Counter()
    with served("m=seedling", "--waiting", "64", "--max-body", "50000") as (address, process):
        with httpx.Client(base_url=address, timeout=120) as http:
            right = {
                q: http.post("/v1/chat/completions", json=short(q)).json()["choices"][0]["message"]["content"]
                for q in QUESTIONS
            }

        def ask(numbers: range) -> None:
            with httpx.Client(base_url=address, timeout=120) as http:
                for number in numbers:
                    seen[one(http, number, right)] += 1
                    if number % 1000 == 999:
                        print(f"{seen.total():,} of {SOAK:,} requests", flush=True)

        def all_of(start: int, stop: int) -> None:
            with ThreadPoolExecutor(CLIENTS) as pool:
                list(pool.map(ask, [range(start + i, stop, CLIENTS) for i in range(CLIENTS)]))

        all_of(0, WARM)
        before = process.memory_info().rss
        all_of(WARM, SOAK)
        after = process.memory_info().rss
        alive = httpx.get(f"{address}/health").status_code == 200
    print(dict(seen))
    wrong = seen["wrong"] + (0 if alive else SOAK)
    return [
        Row("soak: wrong answers, wrong statuses and crashes", wrong, 0, "of 10,000 requests", "lower", n=SOAK),
        Row(
            "soak: memory after all requests over that after the first thousand",
            after / before,
            1.1,
            "ratio",
            "lower",
            n=SOAK,
        ),
    ]


def one(http: httpx.Client, number: int, right: dict[str, str]) -> str:
    """One request, by its number: what became of it in a word; `wrong` where it was not what it had to be."""
    draw = random.Random(number)
    question, kind = draw.choice(list(right)), draw.random()
    if kind < 0.05:
        got = http.post("/v1/chat/completions", content=b"x" * 60_000)
        return "too large" if got.status_code == 413 else "wrong"
    if kind < 0.10:
        got = http.post("/v1/chat/completions", content=b'{"model": ', headers={"content-type": "application/json"})
        return "no JSON" if got.status_code == 400 else "wrong"
    if kind < 0.15:
        got = http.post("/v1/chat/completions", json=body(question, model="nobody"))
        return "no model" if got.status_code == 404 else "wrong"
    if kind < 0.25:
        with http.stream(
            "POST", "/v1/chat/completions", json=body("Tell me a long story.", stream=True, max_tokens=200)
        ) as stream:
            if stream.status_code == 429:
                return "busy"
            for _ in zip(range(draw.randint(1, 4)), stream.iter_lines(), strict=False):
                pass
        return "left"
    if kind < 0.45:
        text, slow = "", kind < 0.27
        with http.stream("POST", "/v1/chat/completions", json=short(question, stream=True)) as stream:
            if stream.status_code == 429:
                return "busy"
            for line in stream.iter_lines():
                if slow:
                    time.sleep(0.02)
                if line.startswith("data: {"):
                    text += json.loads(line[6:])["choices"][0]["delta"].get("content", "")
        return ("slow reader" if slow else "streamed") if text == right[question] else "wrong"
    got = http.post("/v1/chat/completions", json=short(question))
    if got.status_code == 429:
        return "busy"
    same = got.status_code == 200 and got.json()["choices"][0]["message"]["content"] == right[question]
    return "answered" if same else "wrong"


PARTS = {"first": first, "page": page, "throughput": throughput, "soak": soak}


def main() -> None:
    parser = argparse.ArgumentParser(description="How quick and how steady the server is.")
    parser.add_argument(
        "parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=f"all, or some of {', '.join(PARTS)}"
    )
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for name in parser.parse_args().parts or list(PARTS):
        write("serving", f"python -m benchmarks.serving {name}", PARTS[name]())


if __name__ == "__main__":
    main()
