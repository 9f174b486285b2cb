"""The server over real connections: OpenAI's own client, errors in its form, limits, the guard."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from tests.serve.server import client, serving

from fakes import byte_tokenizer, tiny_llama
from metier.core.errors import InputError
from metier.core.store import Key, Store
from metier.engine.local import generate
from metier.models.load import load
from metier.models.save import save_model
from metier.serve.guard import Door, Limits
from metier.text.chat import encode_prompt
from metier.text.nouns import Message

TOKEN = "a-token-of-some-length-123"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for name, seed in (("base", 0), ("specialist", 1)):
        save_model(tiny_llama(seed), byte_tokenizer(), root / name)
    return {"base": root / "base", "quick/specialist": root / "specialist"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a published run and a store with test questions."""
    root = tmp_path_factory.mktemp("world")
    run = root / "runs" / "quick"
    run.mkdir(parents=True)
    (run / "report.html").write_text("<!doctype html><title>Report</title>found")
    (run / "leaderboards_full.json").write_text('{"contenders": []}')
    store = Store(root / "store")
    with store.build(Key.of("examples", "q")) as workspace:
        rows = [{"id": str(i), "messages": _turns(f"Question {i}?"), "group": "g"} for i in range(12)]
        (workspace.files / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        made = store.commit(workspace, {"produces": "examples"})
    store.set_ref("quick", "questions", made.key)
    running = store.root / "scratch" / "tune-1" / "build"
    running.mkdir(parents=True)
    events = [
        {"event": "train", "step": "adapter", "at": i, "total": 9, "loss": 3.0 - i, "tokens_per_second": 50}
        for i in range(3)
    ]
    (running / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events) + '{"half":')
    return root


def _turns(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": "Yes."}]


@pytest.fixture(scope="module")
def address(folders: dict[str, Path], root: Path) -> Iterator[str]:
    with serving(folders, root, limits=Limits(body_bytes=20_000, new_tokens=64, body_seconds=1.0)) as address:
        yield address


def said(folder: Path, question: str, tokens: int) -> str:
    who = load(folder)
    return generate(who, [encode_prompt(who.tokenizer, [Message("user", question)])], max_new_tokens=tokens)[0].text


def body(model: str = "base", **more: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 8, **more}


# --- OpenAI's client ------------------------------------------------------------------------------------------------


def test_the_official_client_is_answered(address: str, folders: dict[str, Path]):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as ask:
        assert [model.id for model in ask.models.list()] == ["base", "quick/specialist"]
        assert ask.models.retrieve("quick/specialist").id == "quick/specialist"
        for name, folder in folders.items():
            turns = [{"role": "user", "content": "Hello?"}]
            whole = ask.chat.completions.create(model=name, messages=turns, max_tokens=12)  # type: ignore[arg-type]
            assert whole.choices[0].message.content == said(folder, "Hello?", 12)
            assert whole.usage is not None
            assert whole.usage.completion_tokens <= 12
            stream = ask.chat.completions.create(
                model=name,
                messages=turns,  # type: ignore[arg-type]
                max_tokens=12,
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = list(stream)
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert text == whole.choices[0].message.content
            assert chunks[-1].usage == whole.usage
            ends = [c.choices[0].finish_reason for c in chunks if c.choices]
            assert ends[-1] == whole.choices[0].finish_reason


def test_log_probabilities_and_plain_completions(address: str):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as ask:
        turns = [{"role": "user", "content": "Hello?"}]
        told = ask.chat.completions.create(
            model="base",
            messages=turns,  # type: ignore[arg-type]
            max_tokens=4,
            logprobs=True,
            top_logprobs=2,
        )
        content = told.choices[0].logprobs.content  # type: ignore[union-attr]
        assert content is not None
        assert all(len(one.top_logprobs) == 2 and one.logprob <= 0 for one in content)
        two = ask.completions.create(model="base", prompt=["abc", "xyz"], max_tokens=5, logprobs=1)
        assert [choice.index for choice in two.choices] == [0, 1]
        one = ask.completions.create(model="base", prompt="xyz", max_tokens=5)
        assert two.choices[1].text == one.choices[0].text
        seeds = [
            ask.completions.create(model="base", prompt="abc", max_tokens=9, temperature=1.0, seed=s).choices[0].text
            for s in (1, 1, 2)
        ]
        assert seeds[0] == seeds[1] != seeds[2]


def test_refusals_are_the_clients_own_errors(address: str):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as ask:
        with pytest.raises(openai.NotFoundError, match="did you mean 'base'"):
            ask.completions.create(model="bse", prompt="a")
        with pytest.raises(openai.BadRequestError, match="tokens") as found:
            ask.completions.create(model="base", prompt="a" * 5000)
        assert found.value.code == "context_length_exceeded"


# --- what is wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"temperature": -1}, 400, "temperature"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user"}]}, 400, "messages.0.content"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, 400, "messages"),
        ({"n": 2}, 400, "n"),
        ({"tools": []}, 400, "tools"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"stop": ["a"] * 5}, 400, "stop"),
        ({"top_logprobs": 50}, 400, "top_logprobs"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty"),
        ({"model": "nothing"}, 404, "model"),
    ],
)
def test_bad_requests_name_their_field(address: str, change: dict[str, object], status: int, param: str):
    with client(address) as http:
        got = http.post("/v1/chat/completions", json=body() | change)
    error = got.json()["error"]
    assert (got.status_code, error["param"]) == (status, param)
    assert error["type"] == "invalid_request_error"


def test_bodies_that_are_no_json_too_large_or_too_slow(address: str):
    with client(address) as http:
        broken = http.post("/v1/chat/completions", content=b"{not json", headers={"content-type": "application/json"})
        assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_json")
        large = http.post("/v1/chat/completions", content=b"x" * 30_000)
        assert large.status_code == 413
        chunked = http.post("/v1/chat/completions", content=iter([b"x" * 9_000] * 4))
        assert chunked.status_code == 413
    at = urlsplit(address)
    with socket.create_connection((at.hostname or "", at.port or 0), timeout=10) as slow:
        slow.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: {at.netloc}\r\nContent-Length: 50\r\n\r\n{{".encode())
        assert b" 408 " in slow.recv(200)


def test_paths_do_not_lead_out(address: str):
    with client(address) as http:
        for path in ("/page/../app.py", "/page/%2e%2e%2fapp.py", "/page-data/runs/..%2f..%2fx/report", "/nothing"):
            assert http.get(path).status_code == 404
        assert http.get("/page-data/runs/quick/report").text.endswith("found")
        assert "sandbox" in http.get("/page-data/runs/quick/report").headers["content-security-policy"]
        assert http.get("/page-data/runs/other/leaderboard").status_code == 404


def test_other_names_and_other_pages_are_refused(address: str):
    with client(address) as http:
        assert http.get("/health", headers={"host": "evil.example"}).status_code == 421
        assert http.get("/health", headers={"host": "localhost:1"}).status_code == 421
        assert http.post("/v1/completions", headers={"origin": "http://evil.example"}, json={}).status_code == 403
        assert http.get("/health", headers={"origin": address}).status_code == 200
        headers = http.get("/").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "script-src 'self'" in headers["content-security-policy"]


def test_a_token_is_asked_for(folders: dict[str, Path], tmp_path: Path):
    with serving({"base": folders["base"]}, tmp_path, token=TOKEN) as address:
        with client(address) as http:
            assert http.get("/health").status_code == 200
            assert http.get("/").status_code == 200
            assert http.get("/v1/models").status_code == 401
            assert http.get("/metrics").status_code == 401
        with client(address, "wrong-token-of-some-length") as http:
            wrong = http.post("/v1/chat/completions", json=body())
            assert (wrong.status_code, wrong.json()["error"]["code"]) == (401, "invalid_api_key")
        with client(address, TOKEN) as http:
            assert http.post("/v1/chat/completions", json=body()).status_code == 200


def test_an_address_that_others_reach_needs_a_token():
    with pytest.raises(InputError, match="no token"):
        Door("0.0.0.0", 8000).check()
    with pytest.raises(InputError, match="fewer than"):
        Door("127.0.0.1", 8000, "short").check()
    Door("0.0.0.0", 8000, TOKEN).check()
    Door("127.0.0.1", 8000).check()


# --- many at once ---------------------------------------------------------------------------------------------------


def test_many_clients_each_get_their_own_answer(address: str, folders: dict[str, Path]):
    questions = [f"{'Why? ' * (i % 5)}Number {i}" for i in range(24)]
    names = [name for _ in range(12) for name in folders]
    wanted = [said(folders[name], q, 10) for name, q in zip(names, questions, strict=True)]

    def ask(i: int) -> str:
        with client(address) as http:
            turn = [{"role": "user", "content": questions[i]}]
            got = http.post("/v1/chat/completions", json={"model": names[i], "messages": turn, "max_tokens": 10})
            return str(got.json()["choices"][0]["message"]["content"])

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(24))) == wanted


def test_a_full_queue_says_so(folders: dict[str, Path], tmp_path: Path):
    with serving({"base": folders["base"]}, tmp_path, slots=1, waiting=1) as address:

        def ask(_: int) -> int:
            with client(address) as http:
                got = http.post("/v1/chat/completions", json=body(max_tokens=400))
                return got.status_code

        with ThreadPoolExecutor(10) as pool:
            statuses = list(pool.map(ask, range(10)))
        assert 200 in statuses
        assert 429 in statuses
        with client(address) as http:
            assert http.post("/v1/chat/completions", json=body()).status_code == 200


def test_who_leaves_frees_the_place(folders: dict[str, Path], tmp_path: Path):
    with serving({"base": folders["base"]}, tmp_path, slots=1, waiting=0) as address, client(address) as http:
        for _ in range(3):
            with http.stream("POST", "/v1/chat/completions", json=body(stream=True, max_tokens=400)) as stream:
                next(stream.iter_lines())
            deadline = time.monotonic() + 10
            while (got := http.post("/v1/chat/completions", json=body())).status_code == 429:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert got.status_code == 200


def test_an_answer_has_its_time(folders: dict[str, Path], tmp_path: Path):
    limits = Limits(seconds=0.05, new_tokens=480)
    with serving({"base": folders["base"]}, tmp_path, limits=limits) as address, client(address) as http:
        late = http.post("/v1/chat/completions", json=body(max_tokens=480))
        assert late.status_code in (200, 504)
        if late.status_code == 504:
            assert late.json()["error"]["code"] == "timeout"
        assert http.post("/v1/chat/completions", json=body(max_tokens=1)).status_code in (200, 504)


# --- what the page reads --------------------------------------------------------------------------------------------


def test_runs_progress_and_questions(address: str):
    with client(address) as http:
        (run,) = http.get("/page-data/runs").json()["runs"]
        assert (run["name"], run["leaderboard"]) == ("quick", True)
        (step,) = http.get("/page-data/progress").json()["steps"]
        assert (step["step"], step["done"], step["total"]) == ("adapter", 2, 9)
        assert step["loss"] == [[0, 3.0], [1, 2.0], [2, 1.0]]
        asked = http.get("/page-data/examples", params={"model": "quick/specialist"}).json()["questions"]
        assert asked == [f"Question {i}?" for i in range(0, 12, 2)]
        assert http.get("/page-data/examples", params={"model": "base"}).json()["questions"] == []


def test_metrics_count_and_hold_no_text(address: str):
    with client(address) as http:
        turn = [{"role": "user", "content": "a-secret-question"}]
        http.post("/v1/chat/completions", json={"model": "base", "messages": turn, "max_tokens": 3})
        text = http.get("/metrics").text
    assert 'metier_requests_total{path="/v1/chat/completions",status="200"}' in text
    assert 'metier_completion_tokens_total{model="base"}' in text
    assert "a-secret-question" not in text


def test_no_text_of_requests_is_logged(
    address: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    with client(address) as http:
        turn = [{"role": "user", "content": "a-secret-question"}]
        for more in ({}, {"temperature": -2}, {"max_tokens": 10**6}):
            http.post("/v1/chat/completions", json={"model": "base", "messages": turn, "max_tokens": 3, **more})
    out = capfd.readouterr()
    assert "a-secret-question" not in out.out + out.err + caplog.text


def test_the_server_asks_nobody(address: str, monkeypatch: pytest.MonkeyPatch):
    reached: list[object] = []
    connect = socket.socket.connect

    def watched(self: socket.socket, to: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            reached.append(to)
        connect(self, to)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", watched)
    with client(address) as http:
        assert http.post("/v1/chat/completions", json=body()).status_code == 200
    assert reached == []
    assert httpx.URL(address).host == "127.0.0.1"
