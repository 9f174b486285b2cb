"""Judges at work: verdicts, what is unscored, going on after a stop, flags, bad input, and keys that stay secret."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.engine.stand_in import StandIn, last_words, serving
from tests.judge.desk import Desk, judge, rows, same_files, value

from metier.core.errors import DataError, EndpointError, InputError, Interrupted, MetierError, RecipeError
from metier.engine import remote
from metier.judge.stage import verdicts_path
from metier.models.builtin import BUILTIN

SECRET = "sk-a-very-secret-key"
QUESTIONS = [(f"q{i}", f"What does animal {i} eat?", f"Animal {i} eats crabs.") for i in range(12)]
RIGHT = [f"Animal {i} eats crabs." for i in range(12)]
WRONG = [f"It eats {i + 100} shoes with Napoleon." for i in range(12)]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(remote, "LOOK", 0.02)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    made = Desk(tmp_path)
    made.answers(QUESTIONS, {"base": WRONG, "tuned": RIGHT, "copy": WRONG}, kinds={"copy": "trivial"})
    return made


def text_of(body: dict[str, Any], name: str) -> str:
    """A judged text in a request."""
    words = last_words(body)
    key = re.search(r"with the mark ([0-9a-f]{24})\.", words)
    assert key is not None
    found = re.search(rf"\[{key[1]} begin {name}\]\n(.*?)\n\[{key[1]} end {name}\]", words, re.DOTALL)
    assert found is not None, words
    return found[1]


def fair(body: dict[str, Any]) -> str:
    """A judge that compares words; asked for a letter, it says it."""
    if "with the mark" not in last_words(body):
        return "A"
    verdict = "consistent" if text_of(body, "answer") == text_of(body, "reference") else "hallucinated"
    return json.dumps({"verdict": verdict})


def at(server: StandIn, **options: Any) -> dict[str, Any]:
    return {"endpoint": server.url, "model": "tiny", "tries": 5, "timeout_seconds": 0.3, "concurrency": 8} | options


def fair_server(*script: int | str, **options: Any) -> StandIn:
    server = StandIn(*script, delay=0.0, **options)
    server.answer = fair
    return server


def test_the_evidence_judge_labels_all_but_trivial_contenders(desk: Desk):
    files, metrics = desk.run(judge())
    found = rows(verdicts_path(files, "evidence"))
    assert [(r["contender"], r["verdict"]) for r in found[:1] + found[12:13]] == [
        ("base", "hallucinated"),
        ("tuned", "consistent"),
    ]
    assert len(found) == 24
    assert found[0]["evidence"]["numbers"] == ["100"]
    assert metrics == {"evidence base consistent": 0.0, "evidence tuned consistent": 1.0}
    about = value(files / "about.json")
    assert (about["good"], about["bad"], about["contenders"], about["answers"]) == (
        "consistent",
        "hallucinated",
        ["base", "tuned"],
        24,
    )
    shares = value(files / "summary.json")["judges"]["evidence"]["shares"]
    (row,) = [r for r in shares if (r["contender"], r["label"]) == ("base", "hallucinated")]
    assert (row["n"], row["count"], row["share"], row["method"], row["unscored"]) == (12, 12, 1.0, "wilson", 0)
    assert row["low"] < 0.8


def test_a_judge_elsewhere_is_held_to_json_and_put_some_answers_twice(desk: Desk):
    with serving(fair_server()) as server:
        files, metrics = desk.run(judge(judges=["evidence", at(server)], repeat=5))
    assert metrics["tiny tuned consistent"] == 1.0
    assert metrics["tiny base consistent"] == 0.0
    assert len(server.asked) == 24 + 5
    enum = server.asked[0]["response_format"]["json_schema"]["schema"]["properties"]["verdict"]["enum"]
    assert enum == ["consistent", "hallucinated", "unknown"]
    told = value(files / "summary.json")
    assert told["judges"]["tiny"]["repeated"]["asked"] == 5
    assert told["judges"]["tiny"]["repeated"]["observed"] == 1.0
    (pair,) = told["agreement"]
    assert (pair["one"], pair["other"], pair["n"], pair["kappa"]) == ("evidence", "tiny", 24, 1.0)
    (compared,) = told["judges"]["tiny"]["comparisons"]
    assert (compared["contender"], compared["against"], compared["verdict"]) == ("tuned", "base", "better")
    measured = value(files.parent / "measured/judges.json")["tiny"]
    assert (measured["requests"], measured["tokens_read"]) == (29, 29 * 7)


def test_labels_stand_in_turned_orders_and_a_drawn_judge_is_found_out(desk: Desk):
    def lazy(body: dict[str, Any]) -> str:
        first = re.search(r"^- ([a-z]+):", last_words(body), re.MULTILINE)
        assert first is not None
        return json.dumps({"verdict": first[1]})

    with serving(StandIn(delay=0.0)) as server:
        server.answer = lazy
        files, _ = desk.run(judge(judges=[at(server)], orders=3, repeat=0))
    told = value(files / "summary.json")["judges"]["tiny"]
    assert told["places"]["picked"] == [72, 0, 0]
    assert told["places"]["p"] < 1e-6
    assert told["steady"] == {"n": 24, "share": 0.0}
    verdicts = Counter(r["verdict"] for r in rows(verdicts_path(files, "tiny")))
    assert verdicts == {"unknown": 24}  # the orders draw


def test_log_probabilities_at_an_endpoint_are_averaged_over_orders(desk: Desk):
    def tops(body: dict[str, Any]) -> dict[str, float]:
        if "with the mark" not in last_words(body):
            return {"A": -0.1}
        letters = dict(re.findall(r"^([A-C])\. ([a-z]+):", last_words(body), re.MULTILINE))
        right = "consistent" if text_of(body, "answer") == text_of(body, "reference") else "hallucinated"
        return {letter: -0.2 if label == right else -3.0 for letter, label in letters.items()}

    with serving(StandIn(delay=0.0)) as server:
        server.tops = tops
        files, metrics = desk.run(judge(judges=[at(server, choose="logprobs")], repeat=0))
        assert len(server.asked) == 1 + 72  # one to see whether it tells any
    assert metrics["tiny tuned consistent"] == 1.0
    row = rows(verdicts_path(files, "tiny"))[12]
    assert row["verdict"] == "consistent"
    assert row["shares"]["consistent"] > 0.8
    assert sum(row["shares"].values()) == pytest.approx(1.0, abs=1e-5)
    assert value(files / "summary.json")["judges"]["tiny"]["places"]["picked"] == [24, 24, 24]


def test_what_is_no_verdict_is_unscored_and_counted(desk: Desk):
    def babbling(body: dict[str, Any]) -> str:
        return "I would say consistent." if "animal 3 " in last_words(body) else fair(body)

    with serving(StandIn(delay=0.0)) as server:
        server.answer = babbling
        files, metrics = desk.run(judge(judges=[at(server)], repeat=0))
    found = [r for r in rows(verdicts_path(files, "tiny")) if r["verdict"] is None]
    assert [(r["id"], r["contender"]) for r in found] == [("q3", "base"), ("q3", "tuned")]
    assert found[0]["why"] == 'no valid reply: "I would say consistent."'
    assert metrics == {
        "tiny base consistent": 0.0,
        "tiny tuned consistent": 1.0,  # of eleven, not of twelve
        "tiny base unscored": 1.0,
        "tiny tuned unscored": 1.0,
    }
    assert desk.said("warning") == ["tiny: 2 of 24 answers are unscored (see `why`)"]


def test_a_judge_whose_model_runs_here(desk: Desk):
    desk.add("seedling", BUILTIN["seedling"])
    short = judge(judges=[{"model": "seedling", "name": "small"}], limit=2)
    files, metrics = desk.run(short)
    found = rows(verdicts_path(files, "small"))
    assert len(found) == 4
    assert all(r["verdict"] in ("consistent", "hallucinated", "unknown") and 0 <= r["agree"] <= 1 for r in found)
    assert set(metrics) == {"small base consistent", "small tuned consistent"}
    (about,) = value(files / "judges.json")
    assert (about["kind"], about["family"], about["orders"], about["how"]) == ("model", "llama", 3, "log-probabilities")
    asked = desk.root / "verdicts/scratch/asked/small.jsonl"
    lines = asked.read_bytes().splitlines(keepends=True)
    assert len(lines) == 12
    for kept in (0, 5, 12):  # killed at any line, torn or not: the same bytes
        again = desk.root / f"cut{kept}/scratch/asked/small.jsonl"
        again.parent.mkdir(parents=True)
        again.write_bytes(b"".join(lines[:kept]) + (lines[kept][:10] if kept == 5 else b""))
        same_files(files, desk.run(short, f"cut{kept}")[0])


def test_half_the_memory_gives_nearly_the_same(desk: Desk):
    desk.add("seedling", BUILTIN["seedling"])
    both = [{"model": "seedling", "name": name, "dtype": name} for name in ("float32", "bfloat16")]
    files, _ = desk.run(judge(judges=both, limit=2, orders=1))
    one, other = (rows(verdicts_path(files, name)) for name in ("float32", "bfloat16"))
    gaps = [
        abs(a["shares"][label] - b["shares"][label]) for a, b in zip(one, other, strict=True) for label in a["shares"]
    ]
    assert 0 < max(gaps) < 0.1


def test_answers_are_compared_in_both_orders(desk: Desk):
    def longer(body: dict[str, Any]) -> str:
        first, second = text_of(body, "first answer"), text_of(body, "second answer")
        return json.dumps({"verdict": "first" if len(first) > len(second) else "second"})

    with serving(StandIn(delay=0.0)) as server:
        server.answer = longer
        files, metrics = desk.run(judge(judges=["evidence", at(server)], pairwise={"against": "base"}, repeat=0))
    assert len(server.asked) == 24  # twelve pairs, both ways
    assert {r["contender"] for r in rows(verdicts_path(files, "tiny"))} == {"tuned"}
    assert metrics["tiny tuned better"] == 0.0
    assert metrics["evidence tuned better"] == 1.0
    assert value(files / "about.json")["against"] == "base"
    places = value(files / "summary.json")["judges"]["tiny"]["places"]
    assert places["answers"] == {"first": 12, "second": 12, "neither": 0}


def test_a_judge_that_likes_the_first_answer_decides_nothing(desk: Desk):
    with serving(StandIn(delay=0.0)) as server:
        server.answer = lambda _body: json.dumps({"verdict": "first"})
        files, metrics = desk.run(judge(judges=[at(server)], pairwise={"against": "base"}, repeat=0))
    assert {r["verdict"] for r in rows(verdicts_path(files, "tiny"))} == {"tie"}
    assert metrics == {"tiny tuned better": 0.0}
    assert value(files / "summary.json")["judges"]["tiny"]["places"]["answers_p"] < 1e-5


@pytest.mark.parametrize("after", [0, 7, 20])
def test_stopped_and_run_again_the_verdicts_are_the_same_and_nothing_is_asked_twice(desk: Desk, after: int):
    with serving(fair_server()) as server:
        whole, _ = desk.run(judge(judges=[at(server, concurrency=2)], repeat=4), "whole")
        server.asked.clear()
        server.whole.clear()
        stage = judge(judges=[at(server, concurrency=2)], repeat=4)
        with pytest.raises(Interrupted) as error:
            desk.run(stage, "cut", stop=lambda: len(server.whole) >= after)
        assert error.value.exit_code == 75
        again, _ = desk.run(stage, "cut")
        assert len(server.whole) == 28
    same_files(whole, again)


def test_faults_lose_nothing(desk: Desk):
    with serving(fair_server(faults=0.3, seed=1, slow=0.5)) as server:
        files, metrics = desk.run(judge(judges=[at(server, tries=9)], repeat=0))
    assert len(server.failed) > 3
    assert len(server.whole) == 24
    assert metrics["tiny tuned consistent"] == 1.0
    assert all(r["verdict"] for r in rows(verdicts_path(files, "tiny")))


def test_another_run_finds_the_replies_of_an_earlier_one(desk: Desk, tmp_path: Path):
    with serving(fair_server()) as server:
        desk.run(judge(judges=[at(server)], limit=5, repeat=0), "first", cache=tmp_path / "cache")
        asked = len(server.asked)
        desk.run(judge(judges=[at(server, name="again")], repeat=0), "second", cache=tmp_path / "cache")
        assert len(server.asked) == asked + 14


def test_a_context_is_evidence_too(tmp_path: Path):
    desk = Desk(tmp_path)
    desk.answers(QUESTIONS[:2], {"base": RIGHT[:2]}, meta={"context": "Animal 0 eats crabs. Animal 1 eats crabs."})
    with serving(fair_server()) as server:
        server.answer = lambda body: json.dumps({"verdict": "consistent" if text_of(body, "context") else "unknown"})
        desk.run(judge(judges=[at(server)], by="both", repeat=0))
        desk.run(judge(judges=["evidence"], by="context"), "second")
    with pytest.raises(DataError, match=r"question q0: the question has no context to judge by"):
        desk.run(judge(by="context", context_field="contxt"), "third")


def test_the_key_stands_nowhere(desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    with serving(fair_server(500, "torn", key=SECRET)) as server:
        server.answer = lambda body: json.dumps({"verdict": "x"}) if "animal 1?" in last_words(body) else fair(body)
        stage = judge(judges=[at(server, key_env="JUDGE_KEY")], repeat=0)
        desk.run(stage, cache=tmp_path / "cache")
        monkeypatch.setenv("JUDGE_KEY", "another-wrong-secret")
        with pytest.raises(InputError, match="does not let us in") as error:
            stage.check(desk.sources)
    assert "another-wrong-secret" not in str(error.value)
    assert SECRET not in json.dumps(desk.events) + json.dumps(stage.model_dump(mode="json"))
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


def test_contenders_and_teachers_are_flagged(desk: Desk, tmp_path: Path):
    record = {
        "kind": "answer",
        "produces": "answers",
        "config": {},
        "inputs": {"tuned": {"digest": "tuned-key", "link": "../../tuned/files", "field": "models.0"}},
    }
    (tmp_path / "answers/run.json").write_text(json.dumps(record))
    (tmp_path / "tuned/files").mkdir(parents=True)
    made = {
        "kind": "tune",
        "produces": "model",
        "config": {"teacher": {"endpoint": "http://127.0.0.1:1/v1", "model": "big"}},
        "inputs": {"root": {"digest": "root-key", "link": "root", "field": "model"}},
    }
    (tmp_path / "tuned/run.json").write_text(json.dumps(made))
    with serving(fair_server(models=("big", "tuned", "root", "other"))) as server:
        judges = [at(server, model=name) for name in ("big", "tuned", "root", "other")]
        files, _ = desk.run(judge(judges=judges, limit=1, repeat=0))
    told = {one["name"]: one["flags"] for one in value(files / "judges.json")}
    assert told["big"] == ["it is the teacher whose words the contenders learnt from"]
    assert told["tuned"] == ["it is a contender: it judges its own answers"]
    assert told["root"] == ["a contender was made from it: it judges its own kin"]
    assert told["other"] == []
    assert "tuned: it is a contender: it judges its own answers" in desk.said("warning")


def test_judges_of_one_family_are_told(desk: Desk):
    with serving(fair_server(models=("gemma-2", "medgemma-4b"))) as server:
        desk.run(judge(judges=[at(server, model=m) for m in ("gemma-2", "medgemma-4b")], limit=1, repeat=0))
    assert "all judges with a model are of the family gemma: they may share their errors" in desk.said("warning")


# ---- bad input: refused before anything is asked --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rubric": "safety"}, "there is no such rubric"),
        ({"judges": ["evidence", "evidence"]}, "two judges have one name"),
        ({"rubric": "helpfulness"}, "decides consistency alone"),
        ({"by": "question"}, "needs evidence"),
        ({"contenders": ["tunes"]}, "no such contender"),
        ({"pairwise": {"against": "bass"}}, "no such contender"),
        (
            {"longest": 100, "limit": 1, "answers": "long"},
            r"question q0, answer of base: question, evidence and answer",
        ),
        ({"answers": "empty"}, r"question q0: the question's reference is empty"),
    ],
)
def test_bad_settings_are_refused(desk: Desk, options: dict[str, Any], said: str):
    desk.answers([("q0", "q", "long " * 50)], {"base": ["x"]}, name="long")
    desk.answers([("q0", "q", " ")], {"base": ["x"]}, name="empty")
    with pytest.raises(MetierError, match=said) as error:
        judge(**options).check(desk.sources)
    assert error.value.exit_code == 2


def test_unknown_keys_are_refused():
    with pytest.raises(ValidationError):
        judge(judge=["evidence"])
    with pytest.raises(ValidationError):
        judge(judges=[{"model": "a", "temperature": 1}])


def test_overlong_texts_may_be_left_unscored(tmp_path: Path):
    desk = Desk(tmp_path)
    desk.answers(
        [("q0", "q", "A crab."), ("q1", "q", "crab " * 100), ("q2", "q", "word " * 3000)], {"base": ["A crab."] * 3}
    )
    desk.add("seedling", BUILTIN["seedling"])
    with pytest.raises(DataError, match=r"exceed the 1024 tokens that the judge 'seedling' can read"):
        desk.run(judge(judges=[{"model": "seedling"}]))
    files, _ = desk.run(judge(judges=["evidence", {"model": "seedling"}], overflow="skip", longest=10_000), "second")
    found = {r["id"]: r for r in rows(verdicts_path(files, "seedling"))}
    assert found["q2"]["why"] == "too long for the step's `longest`"
    assert found["q0"]["verdict"] is not None
    assert rows(verdicts_path(files, "evidence"))[2]["verdict"] is None


def test_keys_models_and_log_probabilities_that_are_missing_cost_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with serving(fair_server(key=SECRET)) as server:
        for options, said in (
            ({"key_env": "NO_SUCH_KEY"}, r"judges\.0: key_env: the environment variable .* is not set"),
            ({}, r"judges\.0: .*does not let us in"),
        ):
            with pytest.raises(InputError, match=said):
                judge(judges=[at(server, **options)]).check(desk.sources)
        assert server.asked == []
    with serving(fair_server()) as server:
        with pytest.raises(InputError, match=r"judges\.0: .*has no such model"):
            judge(judges=[at(server, model="tinny")]).check(desk.sources)
        assert server.asked == []
        with pytest.raises(InputError, match="tells no log-probabilities"):
            judge(judges=[at(server, choose="logprobs")]).check(desk.sources)
        assert len(server.asked) == 1
    with pytest.raises(InputError, match=r"judges\.0: .*cannot be reached"):
        judge(judges=[at(server)]).check(desk.sources)


def test_a_budget_stops_the_step_and_the_next_run_goes_on(desk: Desk):
    prices = {"read": 0.0, "written": 1e6}
    with serving(fair_server()) as server:
        options = {"prices": prices, "concurrency": 1}
        with pytest.raises(EndpointError, match="the budget of 70 is spent"):
            desk.run(judge(judges=[at(server, budget=70.0, **options)], repeat=0))
        first = len(server.whole)
        assert 0 < first < 24
        with pytest.raises(EndpointError, match="the budget of"):  # what the first run spent counts
            desk.run(judge(judges=[at(server, budget=70.0, **options)], repeat=0))
        assert len(server.whole) <= first + 3
        desk.run(judge(judges=[at(server, budget=1e6, **options)], repeat=0))
        assert len(server.whole) == 24
    assert any("over the budget of 70: it may stop before the end" in text for text in desk.said("note"))


def test_recipe_errors_name_the_judge():
    with pytest.raises(RecipeError, match="two judges have one name"):
        judge(judges=["evidence", {"model": "m", "name": "evidence"}])._check_judges(judge().read_rubric({}))
