"""Engines behind one interface: constrained answers, likelihoods, cost, pace, kept replies, Gemini, local, scripted."""

import json
import math
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from tests.engine.stand_in import StandIn, last_words, serving

from metier.core.errors import DataError, EndpointError, InputError, ModelError, RecipeError, StoreError
from metier.engine import remote
from metier.engine.endpoint import Endpoint
from metier.engine.here import LocalEngine
from metier.engine.interface import Asking, Choice
from metier.engine.remote import RemoteEngine, choice_schema, json_object, label_logprobs
from metier.engine.replies import FILE
from metier.engine.scripted import ScriptedEngine, says_json
from metier.models.load import load
from metier.text.nouns import Message

SECRET = "AIza-a-very-secret-key"
SCHEMA = choice_schema(["A", "B"])
LABELS = ["A", "B"]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(remote, "LOOK", 0.02)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def engine(server: StandIn, cache: Path | None = None, asking: Asking | None = None, **options: Any) -> RemoteEngine:
    usual = {"endpoint": server.url, "model": "tiny", "tries": 4, "timeout_seconds": 0.5}
    return RemoteEngine(Endpoint.model_validate(usual | options), asking or Asking(16), cache=cache)


def prompts(count: int) -> list[tuple[Message, ...]]:
    return [(Message("system", "Be brief."), Message("user", f"question {i}")) for i in range(count)]


def said(speaker: Any, count: int, into: dict[int, str] | None = None, **options: Any) -> dict[int, str]:
    found = {} if into is None else into
    for part in speaker.answers(prompts(count), **options):
        found |= {i: one.text for i, one in part}
    return found


def chosen(speaker: Any, count: int, **options: Any) -> dict[int, Choice]:
    return {i: one for part in speaker.choices(prompts(count), [LABELS] * count, **options) for i, one in part}


def replying(server: StandIn, value: object) -> StandIn:
    server.answer = lambda _body: json.dumps(value)
    return server


def test_a_schema_is_sent_in_each_of_its_forms():
    with serving(replying(StandIn(), {"choice": "A"})) as server:
        for form in ("schema", "object", "prompt"):
            said(engine(server, constrain=form), 1, schema=SCHEMA)
    named = {"name": "reply", "strict": True, "schema": SCHEMA}
    forms = [body.get("response_format") for body in server.asked]
    assert forms == [{"type": "json_schema", "json_schema": named}, {"type": "json_object", "schema": SCHEMA}, None]


def test_an_answer_that_is_no_json_is_asked_again_twice_and_then_given_as_it_is():
    with serving(replying(StandIn("half", "half"), {"choice": "A"})) as server:
        assert said(engine(server), 1, schema=SCHEMA) == {0: '{"choice": "A"}'}
    with serving(StandIn()) as server:
        server.answer = lambda _body: "Certainly! The choice is A."
        speaker = engine(server)
        assert said(speaker, 1, schema=SCHEMA) == {0: "Certainly! The choice is A."}
        assert len(server.asked) == 3
        assert (speaker.spent.requests, speaker.spent.tokens_written) == (1, 15)  # all three are paid for


def test_a_choice_is_held_to_its_labels_and_anything_else_is_none():
    with serving(replying(StandIn(), {"choice": "B"})) as server:
        assert [one.index for one in chosen(engine(server), 2).values()] == [1, 1]
        assert last_words(server.asked[0]).endswith('where ... is one of ["A", "B"].')
    for odd in ({"choice": "C"}, {"verdict": "A"}, {"choice": ["A"]}, "A"):
        with serving(replying(StandIn(), odd)) as server:
            assert chosen(engine(server), 1)[0].index is None


@pytest.mark.parametrize("text", ['{"a": 1}', '```json\n{"a": 1}\n```', ' {"a": 1}\n'])
def test_json_alone_or_in_a_fence_is_an_object(text: str):
    assert json_object(text) == {"a": 1}


@pytest.mark.parametrize("text", ["", "[1]", 'so {"a": 1}', '{"a": 1', "null", '{"a": 1} {"b": 2}'])
def test_prose_around_it_makes_it_none(text: str):
    assert json_object(text) is None


def test_likelihoods_at_an_endpoint_are_those_of_first_tokens():
    with serving(StandIn()) as server:
        server.tops = lambda _body: {" A": math.log(0.5), "A": math.log(0.1), "B": math.log(0.3), "x": math.log(0.01)}
        found = [pair for part in engine(server).likelihoods(prompts(1), [["A", "B", "C"]]) for pair in part]
        assert found[0][1] == pytest.approx([math.log(0.6), math.log(0.3), math.log(0.01)])
        assert chosen(engine(server, choose="logprobs"), 1)[0].index == 0
        assert {b["max_tokens"] for b in server.asked} == {1}
        assert {b["top_logprobs"] for b in server.asked} == {20}


def test_tokens_that_fit_several_labels_or_none_count_for_none():
    values, there = label_logprobs({"con": -0.1, "h": -3.0, "zz": -5.0}, ["consistent", "contrary", "hallucinated"])
    assert there
    assert values == pytest.approx((-5.0, -5.0, -3.0))
    assert not label_logprobs({"zz": -1.0}, LABELS)[1]


def test_an_endpoint_without_log_probabilities_is_refused_after_one_token():
    with serving(StandIn()) as server, pytest.raises(InputError, match="tells no log-probabilities") as error:
        engine(server, choose="logprobs").check(likelihoods=True)
    assert "choose: json" in str(error.value)
    assert [body["max_tokens"] for body in server.asked] == [1]


def test_what_was_replied_is_asked_once_and_costs_nothing_again(tmp_path: Path):
    prices = {"read": 1.0, "written": 10.0}
    with serving(StandIn()) as server:
        first = engine(server, tmp_path, prices=prices)
        whole = said(first, 5)
        second = engine(server, tmp_path, prices=prices)
        assert said(second, 6) == whole | {5: "said: question 5"}
        assert len(server.asked) == 6
        said(engine(server, tmp_path, model="tiny", extra={"top_k": 1}), 1)
        assert len(server.asked) == 7  # another request
    assert first.spent.row() == {
        "requests": 5,
        "retries": 0,
        "kept": 0,
        "tokens_read": 35,
        "tokens_written": 15,
        "cost": pytest.approx(185e-6),
    }
    assert (second.spent.requests, second.spent.kept) == (1, 5)


def test_the_same_question_twice_in_a_call_is_two_questions(tmp_path: Path):
    twice = [prompts(1)[0]] * 2
    with serving(StandIn()) as server:
        for _ in range(2):
            found = [pair for part in engine(server, tmp_path).answers(twice) for pair in part]
            assert len(found) == 2
        assert len(server.asked) == 2


def test_kept_replies_hold_neither_key_nor_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STAND_IN_KEY", SECRET)
    with serving(replying(StandIn(key=SECRET), {"choice": "A"})) as server:
        chosen(engine(server, tmp_path, key_env="STAND_IN_KEY"), 1)
    data = (tmp_path / FILE).read_bytes()
    assert SECRET.encode() not in data
    assert b"question 0" not in data


def test_a_damaged_file_of_replies_is_named(tmp_path: Path):
    (tmp_path / FILE).write_bytes(b"no database" * 200)
    with serving(StandIn()) as server, pytest.raises(StoreError, match=r"replies\.sqlite: the kept replies cannot"):
        said(engine(server, tmp_path), 1)


def test_a_budget_is_held_before_it_is_overspent():
    prices = {"read": 0.0, "written": 1e6}  # 1 a token
    with serving(StandIn()) as server:
        speaker = engine(server, asking=Asking(10), prices=prices, budget=25, concurrency=1)
        found: dict[int, str] = {}
        with pytest.raises(EndpointError, match="the budget of 25 is spent"):
            said(speaker, 20, into=found)
    assert len(found) == 6  # 3 tokens each: 6 x 3 + 10 > 25
    assert speaker.spent.cost == 18


def test_a_budget_takes_prices():
    with pytest.raises(RecipeError, match="without prices"):
        Endpoint(endpoint="http://127.0.0.1:1/v1", model="m", budget=1.0).check()
    priced = Endpoint.model_validate(
        {"endpoint": "http://127.0.0.1:1/v1", "model": "m", "prices": {"read": 2, "written": 8}}
    )
    assert priced.most(3000, 100, 10) == pytest.approx((2 * (1000 + 640) + 8 * 1000) / 1e6)


def test_requests_are_spaced_as_the_rate_allows():
    with serving(StandIn(delay=0.0)) as server:
        started = monotonic()
        said(engine(server, requests_per_minute=1200, concurrency=8), 9)
    assert monotonic() - started >= 8 * 0.05


def test_extra_fields_go_over_the_request_and_hold_no_key():
    extra = {"max_tokens": None, "max_completion_tokens": 5, "options": {"top_k": 1}}
    with serving(StandIn()) as server:
        said(engine(server, extra=extra), 1)
    assert "max_tokens" not in server.asked[0]
    assert (server.asked[0]["max_completion_tokens"], server.asked[0]["options"]) == (5, {"top_k": 1})
    with pytest.raises(RecipeError, match=r"extra\.api-key: a recipe holds no key"):
        Endpoint(endpoint="http://127.0.0.1:1/v1", model="m", extra={"api-key": "x"}).check()


def test_gemini_is_spoken_to_in_its_own_words(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GEMINI_KEY", SECRET)
    with serving(replying(StandIn(429, "torn", "odd", key=SECRET), {"choice": "A"}), version="v1beta") as server:
        speaker = engine(server, asking=Asking(33), api="gemini", key_env="GEMINI_KEY")
        speaker.check()
        ((index, one),) = [pair for part in speaker.answers(prompts(1), schema=SCHEMA) for pair in part]
    assert (index, one.text, one.read, one.stopped) == (0, '{"choice": "A"}', 7, True)
    assert server.keys == [SECRET] * 5
    assert server.paths[0] == "/v1beta/models?pageSize=1000"
    assert server.paths[-1] == "/v1beta/models/tiny:generateContent"
    assert not any(SECRET in path for path in server.paths)
    assert server.asked[-1] == {
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "contents": [{"role": "user", "parts": [{"text": "question 0"}]}],
        "generationConfig": {
            "maxOutputTokens": 33,
            "temperature": 0.0,
            "responseMimeType": "application/json",
            "responseJsonSchema": SCHEMA,
        },
    }


def test_gemini_tells_log_probabilities_refuses_keys_and_blocks(monkeypatch: pytest.MonkeyPatch):
    with serving(StandIn(key=SECRET), version="v1beta") as server:
        server.tops = lambda _body: {"A": -0.1, "B": -2.0}
        monkeypatch.setenv("GEMINI_KEY", "wrong-key-of-mine")
        with pytest.raises(InputError, match="does not let us in") as error:
            engine(server, api="gemini", key_env="GEMINI_KEY").check()
        assert "wrong-key-of-mine" not in str(error.value)
        monkeypatch.setenv("GEMINI_KEY", SECRET)
        speaker = engine(server, api="gemini", key_env="GEMINI_KEY", choose="logprobs")
        assert chosen(speaker, 1)[0].logprobs == pytest.approx((-0.1, -2.0))
        with pytest.raises(InputError, match="has no such model"):
            engine(server, api="gemini", key_env="GEMINI_KEY", model="large").check()
        monkeypatch.setattr(server, "gemini", lambda *_, **__: {"promptFeedback": {"blockReason": "SAFETY"}})
        ((_, one),) = [pair for part in speaker.answers(prompts(1)) for pair in part]
        assert (one.text, one.stopped) == ("", False)


@pytest.fixture(scope="module")
def local() -> LocalEngine:
    from metier.models.builtin import BUILTIN

    return LocalEngine(load(BUILTIN["seedling"]), Asking(8), name="seedling", called=lambda i: f"item {i}")


def test_a_local_model_answers_weighs_and_chooses(local: LocalEngine):
    texts = said(local, 3)
    assert sorted(texts) == [0, 1, 2]
    weighed = {i: v for part in local.likelihoods(prompts(2), [["The cat", "Qzx vrk"]] * 2) for i, v in part}
    assert all(likely > odd for likely, odd in weighed.values())
    assert chosen(local, 40, done=range(39))[39].logprobs == chosen(local, 40)[39].logprobs  # resumed: the same bits


def test_a_local_model_takes_no_schema_and_no_overlong_prompt(local: LocalEngine):
    with pytest.raises(ModelError, match="cannot be held to a JSON schema"):
        said(local, 1, schema=SCHEMA)
    with pytest.raises(DataError, match=r"item 0: the question and its choices exceed"):
        local.check_fits([(Message("user", "word " * 3000),)], [LABELS])


def test_a_scripted_engine_does_as_told():
    scripted = ScriptedEngine(says_json(lambda p: {"n": len(p)}), lambda _p, labels: [-len(x) for x in labels], batch=2)
    assert said(scripted, 3, schema=SCHEMA, done=[1]) == {0: '{"n": 2}', 2: '{"n": 2}'}
    assert [one.index for one in chosen(scripted, 2).values()] == [0, 0]
    assert len(scripted.asked) == 4
