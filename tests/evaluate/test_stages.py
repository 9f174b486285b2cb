"""Answer, score and perplexity, run as the pipeline runs them, on tiny models."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.fakes import CONTEXT, save_tiny

from metier.core.errors import DataError, Interrupted, MetierError, MissingExtra, ModelError, RecipeError
from metier.core.events import Events
from metier.core.stage import Context, Source, Stage, references
from metier.evaluate import answering, reading
from metier.evaluate.stage import Answer, MetricName, Perplexity, Score
from metier.measure import metrics
from metier.measure.metrics import METRICS
from metier.measure.statistics import mean_interval
from metier.text import chat
from metier.text.artifacts import write_jsonl

Rows = list[dict[str, Any]]


class House:
    """Folders, sources and contexts of one test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sources: dict[str, Source] = {}
        self.events: Rows = []

    def add(self, name: str, folder: Path) -> Path:
        self.sources[name] = Source(name, (folder,), name, name)
        return folder

    def model(self, name: str, kind: str = "llama", seed: int = 0) -> None:
        self.add(name, save_tiny(self.root / "models" / name.replace("/", "_"), kind, seed))

    def examples(self, rows: Rows, name: str = "qa", split: str = "test") -> None:
        folder = self.add(name, self.root / name)
        folder.mkdir(exist_ok=True)
        write_jsonl(folder / f"{split}.jsonl", rows)

    def documents(self, texts: list[str], name: str = "sea") -> None:
        folder = self.add(name, self.root / name)
        folder.mkdir(exist_ok=True)
        write_jsonl(folder / "heldout.jsonl", [{"id": f"{name}-{i}", "text": t} for i, t in enumerate(texts)])

    def run(
        self, stage: Stage, step: str = "step", stop: Callable[[], bool] = lambda: False
    ) -> tuple[Path, dict[str, float]]:
        """Runs into <root>/<step>/files; an earlier, interrupted run's scratch is still there."""
        stage.check(self.sources)
        folders = [self.root / step / part for part in ("files", "measured", "scratch")]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        events = Events(step, None, [self.events.append])
        metrics = dict(stage.run(Context(step, *folders, events, self.sources, stop)))
        self.add(step, folders[0])
        return folders[0], metrics

    def said(self, event: str) -> list[str]:
        return [e["text"] for e in self.events if e["event"] == event]


def conversation(index: int, reference: str = "crabs and urchins", group: str = "") -> dict[str, Any]:
    asked = {"role": "user", "content": f"What does animal {index} eat{' today' * (index % 5)}?"}
    return {"id": f"q{index}", "messages": [asked, {"role": "assistant", "content": reference}], "group": group}


def read(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def house(tmp_path: Path) -> House:
    made = House(tmp_path)
    made.model("base", "llama", 0)
    made.model("org/tuned", "gpt2", 1)
    made.examples([conversation(i, group="diet" if i % 2 else "depth") for i in range(10)])
    made.documents(["The otter eats crabs.", "Kelp is tall — très haut.", "Sea " * 100, "Fish swim. " * 8])
    made.documents(["Rain fell.", "A cat sat on the mat. " * 9], "general")
    return made


def answer(**changed: Any) -> Answer:
    usual = {"models": ["base", "org/tuned"], "questions": "qa", "max_new_tokens": 8, "baselines": False}
    return Answer.model_validate(usual | changed)


# --- answer


def test_answers_are_laid_out_as_agreed(house: House):
    files, metrics = house.run(answer())
    assert read(files / "questions.jsonl")[3] == {
        "id": "q3",
        "group": "diet",
        "messages": [{"role": "user", "content": "What does animal 3 eat today today today?"}],
        "reference": "crabs and urchins",
    }
    contenders = json.loads((files / "contenders.json").read_text())
    assert [(c["name"], c["model"]) for c in contenders] == [("base", "base"), ("org/tuned", "org/tuned")]
    assert all(c["parameters"] > 20_000 for c in contenders)
    said = read(files / "answers" / "org--tuned.jsonl")
    assert [a["id"] for a in said] == [f"q{i}" for i in range(10)]
    assert set(said[0]) == {"id", "text", "tokens", "stopped"}
    measured = files.parent / "measured"
    assert [r["id"] for r in read(measured / "answers" / "base.jsonl")] == [f"q{i}" for i in range(10)]
    cost = json.loads((measured / "contenders.json").read_text())
    whole = {"seconds", "tokens_per_second", "peak_rss_bytes", "tokens_read", "tokens_written"}
    each = {f"{kind}p{share}_seconds" for kind in ("", "first_token_", "per_token_") for share in (50, 95)}
    assert set(cost["base"]) == whole | each
    shares = [r["seconds"] for r in read(measured / "answers" / "base.jsonl")]
    assert sum(shares) == pytest.approx(cost["base"]["seconds"])
    assert metrics["base output_tokens"] == pytest.approx(
        sum(a["tokens"] for a in read(files / "answers/base.jsonl")) / 10
    )
    assert 0 <= metrics["org/tuned stopped"] <= 1


def test_two_runs_write_the_same_bytes(house: House):
    for options in ({}, {"temperature": 0.8, "top_p": 0.9, "seed": 3}):
        first, _ = house.run(answer(**options), f"one{len(options)}")
        second, _ = house.run(answer(**options), f"two{len(options)}")
        for path in sorted(p for p in first.rglob("*") if p.is_file()):
            assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()


def test_limit_asks_evenly_spaced_questions(house: House):
    files, _ = house.run(answer(limit=4))
    assert [q["id"] for q in read(files / "questions.jsonl")] == ["q0", "q2", "q5", "q7"]
    assert answering.spread(3, 10) == [0, 1, 2]
    assert answering.spread(3, None) == [0, 1, 2]


def test_an_interrupted_answer_keeps_finished_contenders(house: House, monkeypatch: pytest.MonkeyPatch):
    whole, _ = house.run(answer(), "whole")
    loads: list[str] = []
    load = answering.load_held
    monkeypatch.setattr(answering, "load_held", lambda folder, bits: loads.append(folder.name) or load(folder, bits))
    with pytest.raises(Interrupted, match="step 'cut'"):
        house.run(answer(), "cut", stop=lambda: len(loads) == 2)
    again, _ = house.run(answer(), "cut")
    assert loads == ["base", "org_tuned", "org_tuned"]
    assert house.said("note") == ["base: answers kept from the run before"]
    for path in sorted(p for p in whole.rglob("*") if p.is_file()):
        assert path.read_bytes() == (again / path.relative_to(whole)).read_bytes()


def test_progress_is_told(house: House):
    house.run(answer(batch_size=4))
    done = [e["done"] for e in house.events if e["event"] == "progress" and e["task"] == "base"]
    assert done == sorted(done)
    assert done[-1] == 10


def test_a_question_longer_than_the_context_is_named(house: House):
    house.examples([conversation(0), conversation(1) | {"id": "long"}])
    row = conversation(2)
    row["messages"][0]["content"] = "x" * CONTEXT
    house.examples([conversation(0), row])
    with pytest.raises(DataError, match=r"question q2: the question fills the 128 tokens"):
        house.run(answer())


def test_too_little_room_for_an_answer_is_said(house: House):
    house.run(answer(max_new_tokens=CONTEXT, limit=1, models=["base"]))
    assert "base: 1 of 1 questions leave less than 128 tokens" in house.said("warning")[0]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"models": ["base", "base"]}, "models names the same thing twice"),
        ({"models": ["org/tuned", "org--tuned"]}, "would share a file"),
        ({"split": "dev"}, "the dev split of 'qa' is empty"),
    ],
)
def test_bad_questions_and_contenders_are_refused_before_anything_loads(house: House, changed: Any, said: str):
    with pytest.raises(MetierError, match=said):
        answer(**changed).check(house.sources)


def test_nothing_to_ask_is_refused(house: House):
    house.examples([])
    with pytest.raises(DataError, match="there are no questions"):
        answer().check(house.sources)
    answer().check(house.sources | {"qa": Source("qa", (), "", "")})  # the step has not run: nothing to see yet


def test_questions_with_one_id_are_refused(house: House):
    house.examples([conversation(1), conversation(1)])
    with pytest.raises(DataError, match=r"two questions of 'qa' have the same id"):
        house.run(answer())


@pytest.mark.parametrize(
    "changed", [{"models": []}, {"max_new_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"limit": 0}, {"seeds": 1}]
)
def test_impossible_settings_are_refused(changed: Any):
    with pytest.raises(ValidationError):
        answer(**changed)


# --- score


def scripted(house: House, said: dict[str, list[str]], references: list[str], groups: list[str] | None = None) -> None:
    """An answers artifact whose contents are given."""
    folder = house.add("answers", house.root / "answers" / "files")
    (folder / "answers").mkdir(parents=True, exist_ok=True)
    groups = groups or [""] * len(references)
    message = [{"role": "user", "content": "?"}]
    questions = [
        {"id": f"q{i}", "group": g, "messages": message, "reference": r}
        for i, (r, g) in enumerate(zip(references, groups, strict=True))
    ]
    write_jsonl(folder / "questions.jsonl", questions)
    (folder / "contenders.json").write_text(json.dumps([{"name": n, "model": n, "parameters": 1} for n in said]))
    for name, texts in said.items():
        rows = [{"id": f"q{i}", "text": t, "tokens": len(t.split()), "stopped": True} for i, t in enumerate(texts)]
        write_jsonl(folder / "answers" / f"{name}.jsonl", rows)


def scores(files: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    found = json.loads((files / "scores.json").read_text())
    return {(r["contender"], r["metric"], r["group"]): r for r in found["rows"]}


def test_scores_say_which_is_better(house: House):
    references = [f"the answer is {i}" for i in range(40)]
    said = {"base": ["no idea"] * 40, "tuned": references, "same": ["no idea"] * 40}
    scripted(house, said, references, ["seen"] * 20 + ["new"] * 20)
    files, metrics = house.run(Score(answers="answers", metrics=["token_f1", "exact_match", "length_ratio"]))
    found = scores(files)
    assert len(found) == 3 * 3 * 3
    best = found["tuned", "token_f1", "all"]
    assert (best["n"], best["mean"], best["higher_is_better"]) == (40, 1.0, True)
    (gap,) = best["versus"]
    assert set(gap) >= {"against", "difference", "low", "high", "p", "p_holm", "verdict", "detectable"}
    assert (gap["against"], gap["difference"], gap["verdict"]) == ("base", 1.0, "better")
    assert gap["p"] < gap["p_holm"] < 0.05
    assert found["same", "exact_match", "new"]["versus"][0]["verdict"] == "no evidence of a difference"
    assert found["same", "exact_match", "new"]["method"] == "wilson"
    assert found["base", "token_f1", "all"]["versus"] == []
    assert found["tuned", "length_ratio", "all"]["versus"] == []
    assert found["tuned", "length_ratio", "all"]["higher_is_better"] is None
    assert metrics["tuned token_f1"] == 1.0
    whole = json.loads((files / "scores.json").read_text())
    assert (whole["baseline"], whole["confidence"]) == ("base", 0.95)
    first = read(files / "items.jsonl")[0]
    assert first == {
        "id": "q0",
        "contender": "base",
        "group": "seen",
        "token_f1": 0.0,
        "exact_match": 0.0,
        "length_ratio": 0.5,
    }


def test_against_chooses_whom_to_compare_with(house: House):
    references = [str(i) for i in range(12)]
    scripted(house, {"a": references, "b": ["x"] * 12, "c": references}, references)
    files, _ = house.run(Score(answers="answers", metrics=["exact_match"], against=["c", "b"]))
    found = scores(files)
    assert [v["against"] for v in found["a", "exact_match", "all"]["versus"]] == ["c", "b"]
    assert [v["verdict"] for v in found["b", "exact_match", "all"]["versus"]] == ["worse"]
    assert json.loads((files / "scores.json").read_text())["baseline"] == "c"


def test_the_family_is_all_that_is_shown(house: House):
    references = [f"word{i} tail" for i in range(30)]
    said = {"base": ["tail"] * 30, "tuned": [r if i % 4 else "none" for i, r in enumerate(references)]}
    scripted(house, said, references, [f"g{i % 3}" for i in range(30)])
    files, _ = house.run(Score(answers="answers"))
    gaps = [v for r in scores(files).values() for v in r["versus"]]
    assert len(gaps) == 3 * 4
    smallest = min(gaps, key=lambda v: v["p"])
    assert smallest["p_holm"] == pytest.approx(min(1.0, 12 * smallest["p"]))


def test_one_item_has_a_mean_and_claims_nothing(house: House):
    scripted(house, {"base": ["x"], "tuned": ["y"]}, ["y"])
    files, _ = house.run(Score(answers="answers"))
    row = scores(files)["tuned", "token_f1", "all"]
    assert (row["mean"], row["low"], row["high"]) == (1.0, None, None)
    assert row["versus"][0]["verdict"] == "no evidence of a difference"


def test_scoring_twice_gives_the_same_bytes(house: House):
    house.run(answer(), "answers")
    first, _ = house.run(Score(answers="answers"), "s1")
    second, _ = house.run(Score(answers="answers"), "s2")
    for name in ("items.jsonl", "scores.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.parametrize(
    ("said", "references", "groups", "message"),
    [
        ({"base": ["x", "y"]}, ["x", " "], None, r"question q1: the question has no reference answer, which token_f1"),
        ({"base": ["x"]}, ["x", "y"], None, r"the answers of 'base' are not to these questions"),
        ({"base": []}, [], None, "there are no questions to score"),
        ({"base": ["x"]}, ["x"], ["all"], "may not be called 'all'"),
    ],
)
def test_answers_that_do_not_fit_are_refused(house: House, said: Any, references: Any, groups: Any, message: str):
    scripted(house, said, references, groups)
    with pytest.raises(DataError, match=message):
        house.run(Score(answers="answers"))


def test_ids_in_another_order_are_refused(house: House):
    scripted(house, {"base": ["x", "y"]}, ["x", "y"])
    path = house.root / "answers/files/answers/base.jsonl"
    write_jsonl(path, reversed(read(path)))
    with pytest.raises(DataError, match=r"q1 where q0 was asked \(number 1\)"):
        house.run(Score(answers="answers"))


def test_questions_without_reference_can_still_be_measured_otherwise(house: House):
    scripted(house, {"base": ["x", "y"]}, ["", ""])
    _, metrics = house.run(Score(answers="answers", metrics=["stopped", "output_tokens"]))
    assert metrics == {"base stopped": 1.0, "base output_tokens": 1.0}


def test_empty_answers_score_nothing(house: House):
    scripted(house, {"base": ["", ""]}, ["x", "y"])
    _, metrics = house.run(Score(answers="answers", metrics=["token_f1", "rouge_l", "length_ratio"]))
    assert set(metrics.values()) == {0.0}


@pytest.mark.parametrize(
    ("against", "message"),
    [(["bsae"], "did you mean 'base'"), ([], "names nobody"), (["base", "base"], "same thing twice")],
)
def test_unknown_contenders_to_compare_with_are_refused(house: House, against: list[str], message: str):
    scripted(house, {"base": ["x"]}, ["x"])
    with pytest.raises(RecipeError, match=message):
        Score(answers="answers", against=against).check(house.sources)


def test_metrics_are_known_once_and_by_name():
    with pytest.raises(ValidationError, match="did you mean 'rouge_l'"):
        Score.model_validate({"answers": "a", "metrics": ["rougel"]})
    with pytest.raises(RecipeError, match="same thing twice"):
        Score(answers="a", metrics=["rouge_l", "rouge_l"]).check({"a": Source("a", (), "", "")})
    assert set(MetricName.__args__) == set(METRICS)  # type: ignore[attr-defined]
    with pytest.raises(ValidationError, match="it needs a model"):
        Score.model_validate({"answers": "a", "metrics": ["bertscore"]})
    with pytest.raises(ValidationError, match="give each an entry of its own"):
        Score.model_validate({"answers": "a", "metrics": [{"semantic": {"model": "m"}, "bertscore": {"model": "m"}}]})
    twice = Score.model_validate({"answers": "a", "metrics": [{"semantic": {"model": m}} for m in "ab"]})
    with pytest.raises(RecipeError, match="same thing twice"):
        twice.check({"a": Source("a", (), "", "")})


def test_a_metric_that_cannot_be_measured_is_refused_before_anything_runs(
    house: House, monkeypatch: pytest.MonkeyPatch
):
    scripted(house, {"base": ["x", "y"]}, ["x", ""])
    with pytest.raises(DataError, match="question q1: the question has no reference"):
        Score(answers="answers").check(house.sources)
    monkeypatch.setattr(metrics, "find_spec", lambda package: None)
    with pytest.raises(MissingExtra, match="'bleu'"):
        Score(answers="answers", metrics=["bleu"]).check({"answers": Source("answers", (), "", "")})


def test_a_metrics_model_is_part_of_what_scores_are_made_from():
    step = Score.model_validate({"answers": "a", "metrics": ["rouge_l", {"semantic": {"model": "some/encoder"}}]})
    assert [(r.field, r.value) for r in references(step)] == [
        ("answers", "a"),
        ("metrics.1.semantic.model", "some/encoder"),
    ]


def test_figures_of_the_whole_set_stand_beside_their_metric(house: House):
    references = [f"the otter eats {i} crabs and urchins today" for i in range(20)]
    said = {"base": ["the otter eats crabs"] * 20, "tuned": [r.replace("today", "now") for r in references]}
    scripted(house, said, references, ["a"] * 10 + ["b"] * 10)
    files, _ = house.run(Score(answers="answers", metrics=["bleu", "distinct_2"]))
    found = scores(files)
    whole, every = found["tuned", "corpus_bleu", "all"], found["base", "distinct_2_of_all", "all"]
    assert whole["low"] <= whole["mean"] <= whole["high"]
    assert (whole["n"], whole["versus"], whole["method"]) == (20, [], "bca")
    assert (every["mean"], every["low"], every["method"]) == (3 / 60, None, "none")
    assert found["base", "distinct_2_of_all", "b"]["mean"] == 3 / 30
    assert found["tuned", "bleu", "all"]["versus"][0]["verdict"] == "better"
    assert set(read(files / "items.jsonl")[0]) == {"id", "contender", "group", "bleu", "distinct_2"}


def test_points_of_reference_are_shown_and_compared_with_nobody(house: House):
    references = [f"crab {i}" for i in range(30)]
    said = {"copy": ["?"] * 30, "base": ["no"] * 30, "tuned": references}
    scripted(house, said, references)
    kinds = {"copy": "trivial", "base": "model", "tuned": "model"}
    path = house.root / "answers/files/contenders.json"
    path.write_text(json.dumps([{"name": n, "model": n, "parameters": 1, "kind": k} for n, k in kinds.items()]))
    files, _ = house.run(Score(answers="answers", metrics=["token_f1"]), "plain")
    found, whole = scores(files), json.loads((files / "scores.json").read_text())
    assert whole["contenders"] == kinds
    assert whole["baseline"] == "base"
    assert (found["copy", "token_f1", "all"]["versus"], found["copy", "token_f1", "all"]["n"]) == ([], 30)
    files, _ = house.run(Score(answers="answers", metrics=["token_f1"], against=["base", "copy"]), "named")
    assert [v["against"] for v in scores(files)["tuned", "token_f1", "all"]["versus"]] == ["base", "copy"]
    assert scores(files)["copy", "token_f1", "all"]["versus"] == []


def test_questions_that_belong_together_are_resampled_together(house: House):
    references = [f"crab {i // 5}" for i in range(60)]
    said = {"base": ["no"] * 60, "tuned": [r if i // 5 % 2 else "no" for i, r in enumerate(references)]}
    scripted(house, said, references)
    path = house.root / "answers/files/questions.jsonl"
    rows = [row | {"meta": {"animal": f"a{i // 5}", "page": str(i)}} for i, row in enumerate(read(path))]
    write_jsonl(path, rows)
    gaps = {}
    for key in (None, "animal", "page"):
        files, _ = house.run(Score(answers="answers", metrics=["exact_match"], cluster=key), f"by-{key}")
        gaps[key] = scores(files)["tuned", "exact_match", "all"]
    assert gaps[None]["method"] == gaps["page"]["method"] == "wilson"
    assert gaps["animal"]["method"] == "cluster student"
    assert gaps["animal"]["high"] - gaps["animal"]["low"] > 1.8 * (gaps[None]["high"] - gaps[None]["low"])
    assert gaps["animal"]["versus"][0]["p"] > gaps[None]["versus"][0]["p"]
    with pytest.raises(DataError, match=r"no question's meta has the entry(.|\n)*did you mean 'animal'"):
        Score(answers="answers", cluster="animals").check(house.sources)
    write_jsonl(path, [row | {"meta": {"cluster": f"a{i // 5}"}} for i, row in enumerate(rows)])
    files, _ = house.run(Score(answers="answers", metrics=["exact_match"]), "told")
    told = scores(files)["tuned", "exact_match", "all"]
    assert (told["low"], told["high"]) == (gaps["animal"]["low"], gaps["animal"]["high"])


# --- perplexity


def perplexity(**changed: Any) -> Perplexity:
    whole = {"models": ["base", "org/tuned"], "documents": ["sea", "general"], **changed}
    return Perplexity.model_validate(whole)


def test_bits_per_byte_are_nats_over_the_texts_bytes(house: House):
    files, metrics = house.run(perplexity(window=64, stride=32))
    items = read(files / "items.jsonl")
    sea = [r for r in items if (r["contender"], r["group"]) == ("base", "sea")]
    assert [r["bytes"] for r in sea] == [len(t.encode()) for t in house_texts(house)]
    assert sea[1]["bytes"] > len(house_texts(house)[1]), "a text with other letters than ASCII must be among them"
    expected = sum(r["nll"] for r in sea) / math.log(2) / sum(r["bytes"] for r in sea)
    found = scores(files)
    assert found["base", "bits_per_byte", "sea"]["mean"] == pytest.approx(expected)
    assert metrics["base sea bits_per_byte"] == pytest.approx(expected)
    row = found["base", "perplexity", "sea"]
    assert row["mean"] == pytest.approx(math.exp(sum(r["nll"] for r in sea) / sum(r["tokens"] for r in sea)))
    assert (row["low"], row["method"]) == (None, "too few items"), "one document of four is most of the text"
    assert (row["n"], row["versus"], row["higher_is_better"]) == (4, [], False)
    assert found["org/tuned", "bits_per_byte", "general"]["versus"][0]["against"] == "base"


def test_perplexitys_interval_is_the_exponential_of_the_losses(house: House):
    house.documents([f"The {animal} eats crabs, and {'kelp ' * i}." for i, animal in enumerate("abcdefghijkl")])
    files, _ = house.run(perplexity(documents=["sea"]))
    row = scores(files)["base", "perplexity", "sea"]
    assert row["low"] < row["mean"] < row["high"]
    items = [r for r in read(files / "items.jsonl") if r["contender"] == "base"]
    loss = mean_interval([r["nll"] for r in items], weights=[r["tokens"] for r in items])
    assert (row["low"], row["high"]) == pytest.approx((math.exp(loss.low or 0), math.exp(loss.high or 0)))


def house_texts(house: House) -> list[str]:
    return [r["text"] for r in read(house.root / "sea" / "heldout.jsonl")]


def test_the_end_token_is_not_counted(house: House):
    _, _ = house.run(perplexity(documents=["general"]))
    rows = read(house.root / "step" / "files" / "items.jsonl")
    tokens = reading.load(house.sources["base"].path).tokenizer.encode("Rain fell.", add_special_tokens=False)
    assert rows[0]["tokens"] == len(tokens)


def test_a_tokenizer_without_begin_token_starts_after_its_end_token(house: House):
    tokenizer = reading.load(house.sources["base"].path).tokenizer
    assert chat.encode_reading(tokenizer, "Hi")[0] == tokenizer.bos_token_id
    assert chat.encode_reading(tokenizer, "Hi")[-1] != tokenizer.eos_token_id
    tokenizer.bos_token = None
    assert chat.encode_reading(tokenizer, "Hi")[0] == tokenizer.eos_token_id
    assert len(chat.encode_reading(tokenizer, "Hi")) == 3


def test_perplexity_goes_on_after_an_interruption(house: House, monkeypatch: pytest.MonkeyPatch):
    whole, _ = house.run(perplexity(), "whole")
    loads: list[str] = []
    load = reading.load
    monkeypatch.setattr(reading, "load", lambda folder: loads.append(folder.name) or load(folder))
    with pytest.raises(Interrupted):
        house.run(perplexity(), "cut", stop=lambda: len(loads) == 2)
    again, _ = house.run(perplexity(), "cut")
    assert loads == ["base", "org_tuned", "org_tuned"]
    for name in ("items.jsonl", "scores.json"):
        assert (whole / name).read_bytes() == (again / name).read_bytes()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"models": ["base", "base"]}, "same thing twice"),
        ({"documents": ["sea", "sea"]}, "documents names the same thing twice"),
        ({"against": ["tuned"]}, "did you mean 'org/tuned'"),
        ({"window": 8, "stride": 8}, "below the window"),
        ({"documents": ["empty"]}, "the heldout split of 'empty' is empty"),
    ],
)
def test_bad_perplexity_steps_are_refused_early(house: House, changed: Any, message: str):
    house.documents([], "empty")
    with pytest.raises(MetierError, match=message):
        perplexity(**changed).check(house.sources)


def test_empty_documents_and_windows_beyond_the_context_are_refused(house: House):
    with pytest.raises(ModelError, match="2 to 128"):
        house.run(perplexity(window=129))
    house.documents(["fine", ""])
    with pytest.raises(DataError, match="document sea-1"):
        house.run(perplexity(), "other")


def test_limit_reads_evenly_spaced_documents(house: House):
    files, _ = house.run(perplexity(documents=["sea"], models=["base"], limit=2))
    assert [r["id"] for r in read(files / "items.jsonl")] == ["sea-0", "sea-2"]


# --- the door


def test_the_stages_import_nothing_heavy():
    code = "import sys, metier.evaluate.stage; print([m for m in ('torch', 'numpy', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
