"""Answers from an endpoint: what is tried again, what is refused, what is never told, and what is asked once."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.engine.stand_in import StandIn, serving
from tests.evaluate.test_stages import House, answer, conversation, read

from metier.core.errors import EndpointError, InputError, Interrupted, MetierError, RecipeError
from metier.engine import remote
from metier.engine.endpoint import Endpoint
from metier.engine.interface import Asking
from metier.engine.remote import RemoteEngine
from metier.text.nouns import Message

SECRET = "sk-a-very-secret-key"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(remote, "LOOK", 0.02)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def engine(server: StandIn, asking: Asking | None = None, **options: Any) -> RemoteEngine:
    usual = {"endpoint": server.url, "model": "tiny", "tries": 3, "timeout_seconds": 0.5}
    return RemoteEngine(Endpoint.model_validate(usual | options), asking or Asking(16))


def prompts(count: int) -> list[tuple[Message, ...]]:
    return [(Message("system", "Be brief."), Message("user", f"question {i}")) for i in range(count)]


def collect(speaker: RemoteEngine, count: int, into: dict[int, str] | None = None, **options: Any) -> dict[int, str]:
    found = {} if into is None else into
    for part in speaker.answers(prompts(count), **options):
        found |= {index: said.text for index, said in part}
    return found


def test_questions_are_sent_as_they_are_and_answers_come_with_their_cost():
    with serving(StandIn()) as server:
        found = [pair for part in engine(server, Asking(33)).answers(prompts(5)) for pair in part]
    assert sorted(index for index, _ in found) == list(range(5))
    said = dict(found)[2]
    assert (said.text, said.tokens, said.read, said.stopped) == ("said: question 2", 3, 7, True)
    assert said.seconds > 0
    assert said.first_token_seconds is None
    (body,) = [b for b in server.asked if b["messages"][-1]["content"] == "question 2"]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "question 2"}]
    assert body == {"model": "tiny", "messages": messages, "max_tokens": 33, "temperature": 0.0, "stream": False}


def test_draws_have_a_seed_each():
    with serving(StandIn()) as server:
        collect(engine(server, Asking(8, temperature=0.7, top_p=0.9, seed=40)), 3)
    assert sorted((b["seed"], b["top_p"]) for b in server.asked) == [(40, 0.9), (41, 0.9), (42, 0.9)]


@pytest.mark.parametrize("trouble", [429, 500, 503, "slow", "torn", "odd", "closed"])
def test_what_may_pass_is_tried_again(trouble: int | str):
    with serving(StandIn(trouble, trouble)) as server:
        speaker = engine(server, timeout_seconds=0.3)
        assert collect(speaker, 3) == {i: f"said: question {i}" for i in range(3)}
    assert len(server.asked) == 5
    assert speaker.retries == 2


def test_the_server_says_when(monkeypatch: pytest.MonkeyPatch):
    waited: list[float] = []
    with serving(StandIn(429, after="7")) as server:
        speaker = engine(server)
        monkeypatch.setattr(speaker._halt, "wait", lambda seconds: bool(waited.append(seconds)))
        collect(speaker, 1)
    assert waited == [7.0]
    assert remote._retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert remote._retry_after("soon") is None


def test_a_pause_beyond_patience_is_not_waited_for():
    with serving(StandIn(429, after="86400")) as server, pytest.raises(EndpointError, match="status 429"):
        collect(engine(server), 1)


def test_waits_grow_with_some_chance_in_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote, "FIRST_WAIT", 1.0)
    waited: list[float] = []
    with serving(StandIn(*[500] * 9)) as server:
        speaker = engine(server, tries=10)
        monkeypatch.setattr(speaker._halt, "wait", lambda seconds: bool(waited.append(seconds)))
        collect(speaker, 1)
    assert all(min(60, 2**i) / 2 <= seconds <= min(60, 2**i) for i, seconds in enumerate(waited))
    assert len(set(waited)) == 9


def test_what_does_not_pass_fails_after_giving_what_came():
    with serving(StandIn(200, 200, 500, 500, 500)) as server:
        given: dict[int, str] = {}
        with pytest.raises(EndpointError, match=r"gave no answer \(status 500: 'failing with 500'\)"):
            collect(engine(server, concurrency=1), 4, given)
    assert set(given) == {0, 1}


def test_no_more_requests_are_under_way_than_allowed_and_done_ones_are_not_asked():
    with serving(StandIn()) as server:
        found = collect(engine(server, concurrency=3), 12, done={0, 5})
    assert 1 < server.busiest <= 3
    assert set(found) == set(range(12)) - {0, 5}
    assert len(server.asked) == 10


def test_a_stop_request_gives_what_is_paid_for_and_ends():
    asked = iter([False] * 2 + [True] * 99)
    with serving(StandIn()) as server:
        given: dict[int, str] = {}
        with pytest.raises(Interrupted):
            collect(engine(server, concurrency=2), 60, given, should_stop=lambda: next(asked))
    assert len(given) == len(server.asked) < 60


# --- before anything is paid for


def test_a_key_comes_from_the_environment_and_is_told_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    house = House(tmp_path)
    house.examples([conversation(i) for i in range(3)])
    with serving(StandIn(key=SECRET)) as server:
        far = {"endpoint": server.url, "model": "tiny", "key_env": "METIER_TEST_KEY"}
        monkeypatch.delenv("METIER_TEST_KEY", raising=False)
        with pytest.raises(RecipeError, match=r"models.0: key_env: the environment variable .* is not set"):
            answer(models=[far]).check(house.sources)
        assert not server.keys, "nobody is asked without the key"
        monkeypatch.setenv("METIER_TEST_KEY", SECRET + "-wrong")
        with pytest.raises(InputError, match="does not let us in") as caught:
            answer(models=[far]).check(house.sources)
        assert SECRET not in str(caught.value)
        assert "check the key in METIER_TEST_KEY" in str(caught.value)
        monkeypatch.setenv("METIER_TEST_KEY", SECRET)
        house.run(answer(models=[far]))
        assert set(server.keys[1:]) == {f"Bearer {SECRET}"}
    written = "".join(p.read_text() for p in tmp_path.rglob("*") if p.is_file() and p.suffix in (".json", ".jsonl"))
    assert SECRET not in written + json.dumps(house.events)


def test_an_unknown_model_is_named_before_anything_is_asked():
    with serving(StandIn(models=("tiny-chat", "huge"))) as server:
        with pytest.raises(InputError, match="did you mean 'tiny-chat'"):
            engine(server, model="tiny-chta").check()
        engine(server, model="huge").check()
    assert not server.asked


def test_nobody_at_the_address():
    with serving(StandIn()) as server:
        pass
    with pytest.raises(InputError, match="the endpoint cannot be reached"):
        engine(server).check()


def test_a_question_that_is_refused_is_no_question_of_patience():
    with serving(StandIn(400)) as server, pytest.raises(InputError, match="status 400: 'failing with 400'"):
        collect(engine(server), 1)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:8080", "not the address"),
        ("ftp://x/v1", "not the address"),
        ("http://", "not the address"),
        ("http://x:99999/v1", "not the address"),
        ("http://user:pass@x/v1", "holds no key"),
        ("http://x/v1?key=abc", "holds no key"),
    ],
)
def test_addresses_that_cannot_be(address: str, said: str):
    with pytest.raises(RecipeError, match=said) as caught:
        Endpoint(endpoint=address, model="m").check()
    assert "pass@" not in str(caught.value)
    assert "abc" not in str(caught.value)


# --- as a contender


def test_an_endpoint_answers_beside_models_and_is_asked_nothing_twice(tmp_path: Path):
    house = House(tmp_path)
    house.model("base")
    house.examples([conversation(i) for i in range(8)])
    with serving(StandIn(*[200] * 5, *[500] * 9)) as server:
        far = {"endpoint": server.url, "model": "tiny", "name": "far", "concurrency": 1, "tries": 2}
        far |= {"prices": {"read": 1.0, "written": 0.0}}
        with pytest.raises(EndpointError, match="the answers that came are kept"):
            house.run(answer(models=["base", far], limit=8))
        server.script.clear()
        server.answer = lambda body: "again: <script>\u2028"
        files, metrics = house.run(answer(models=["base", far], limit=8))
    asked = [b["messages"][-1]["content"] for b in server.asked]
    assert [asked.count(q) for q in dict.fromkeys(asked)] == [1] * 5 + [3] + [1] * 2
    said = read(files / "answers/far.jsonl")
    assert [row["text"].split(":")[0] for row in said] == ["said"] * 5 + ["again"] * 3
    contenders = json.loads((files / "contenders.json").read_text())
    assert contenders[1] == {"name": "far", "model": "tiny", "kind": "endpoint", "endpoint": server.url}
    assert metrics["far stopped"] == 1.0
    cost = json.loads((files.parent / "measured/contenders.json").read_text())["far"]
    assert cost["tokens_read"] == 7 * 8
    assert cost["cost"] == pytest.approx(56e-6)
    assert "first_token_p50_seconds" not in cost
    exposure = json.loads((files / "contamination.json").read_text())
    assert exposure["contenders"]["far"]["unknown"] == ["far"]


def test_two_contenders_of_one_name_are_refused(tmp_path: Path):
    house = House(tmp_path)
    house.model("base")
    house.examples([conversation(0)])
    far = {"endpoint": "http://127.0.0.1:9/v1", "model": "base"}
    with pytest.raises(MetierError, match="names the same thing twice"):
        answer(models=["base", far]).check(house.sources)
