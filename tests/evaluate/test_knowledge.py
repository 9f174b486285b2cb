"""What a model still knows: each figure against its definition, in fewer bits too, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tests.evaluate.test_stages import House, read
from tests.fakes import save_tiny

from metier.core.errors import DataError, Interrupted, MissingExtra, RecipeError
from metier.engine.local import generate
from metier.engine.reciting import recite
from metier.evaluate.held import Held
from metier.evaluate.knowing import Asking, wrong_answers
from metier.evaluate.knowledge import Knowledge
from metier.measure.forgetting import Known, forget_quality, recall, truth_ratio, utility
from metier.models.held import load_held
from metier.models.load import load
from metier.text.artifacts import write_jsonl
from metier.text.chat import encode_prompt
from metier.text.nouns import Message, Question

ANSWERS = ["crabs and urchins", "small fish", "krill", "sea grass", "jellyfish of all kinds"]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def rows(first: int, count: int, **meta: str) -> list[dict[str, Any]]:
    found = []
    for i in range(first, first + count):
        asked = {"role": "user", "content": f"What does animal {i} eat?"}
        messages = [asked, {"role": "assistant", "content": f"{ANSWERS[i % len(ANSWERS)]}."}]
        found.append({"id": f"q{i}", "messages": messages, "group": "", **({"meta": meta} if meta else {})})
    return found


def furnished(house: House, **meta: str) -> None:
    for name, seed in (("knows", 0), ("forgot", 1)):
        house.model(name, seed=seed)
    house.examples(rows(0, 6, **meta), "secrets", "train")
    house.examples(rows(50, 7, **meta), "kept", "train")


def knowledge(**fields: Any) -> Knowledge:
    usual = {"models": ["knows", "forgot"], "forget": "secrets", "retain": "kept", "max_new_tokens": 6, "wrong": 2}
    return Knowledge.model_validate({**usual, **fields})


# ---- the figures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_recited_is_what_the_model_says_of_each_string_alone(tmp_path: Path, kind: str):
    loaded = load(save_tiny(tmp_path / kind, kind))
    random = np.random.default_rng(0)
    pairs = []
    for size in (3, 17, 9, 30, 4):
        context = random.integers(6, 250, size).tolist()
        said = generate(loaded, [context], max_new_tokens=8)[0].ids if size % 2 else random.integers(6, 250, 7).tolist()
        pairs.append((context, said or [7]))
    pairs.append((pairs[0][0], [*pairs[0][1][:-1], 6, *pairs[0][1]]))
    for (context, answer), found in zip(pairs, recite(loaded, pairs), strict=True):
        ids = torch.tensor([[*context, *answer]])
        with torch.no_grad():
            logits = loaded.model(input_ids=ids, use_cache=False).logits[0, len(context) - 1 : -1]
        logs = torch.log_softmax(logits.float(), -1)
        wanted = torch.tensor(answer)
        assert found.logprob == pytest.approx(logs.gather(1, wanted[:, None]).sum().item(), rel=1e-4)
        assert found.probability == pytest.approx(math.exp(found.logprob / len(answer)))
        right = (logs.argmax(-1) == wanted).tolist()
        fewest = next(k for k in range(len(answer) + 1) if all(right[k:]))  # 1 - k / |y|, Carlini et al. 2021
        assert found.extraction_strength == pytest.approx(1 - fewest / len(answer))


def test_greedy_decoding_completes_what_extraction_strength_says(tmp_path: Path):
    loaded = load(save_tiny(tmp_path / "m"))
    context = [7, 30, 90]
    said = list(generate(loaded, [context], max_new_tokens=9)[0].ids)
    mixed = [40, 41, *generate(loaded, [[*context, 40, 41]], max_new_tokens=6)[0].ids]
    one, other = recite(loaded, [(context, said), (context, mixed)])
    assert one.extraction_strength == 1
    assert other.extraction_strength == pytest.approx(1 - 2 / len(mixed))


def test_truth_ratio_recall_and_harmonic_utility():
    assert truth_ratio(0.5, [0.1, 0.3]) == pytest.approx(0.4)
    assert truth_ratio(0.0, [0.1]) > 1e100
    known = Known(0.5, 0.4, 1.0, 0.25)
    assert (known.forgotten_truth, known.kept_truth) == pytest.approx((0.4, 0.6))
    assert Known(0.1, 4.0, 0, 0).forgotten_truth == 0.25
    assert Known(0.1, 4.0, 0, 0).kept_truth == 0
    assert recall("small blue fish", "small fish and krill") == 0.5
    assert recall("", "krill") == 0
    one, other = [Known(0.5, 0.4, 0, 0.25), Known(0.7, 0.2, 0, 0.75)], [Known(0.9, 0.1, 0, 1.0)]
    means = [0.6, 0.5, 0.7, 0.9, 1.0, 0.9]
    assert utility([one, other]).value == pytest.approx(6 / sum(1 / m for m in means))
    assert utility([[Known(0.0, 5.0, 0, 0.0)]]).value == pytest.approx(0, abs=1e-9)


def test_forget_quality_is_small_where_models_can_be_told_apart():
    random = np.random.default_rng(0)
    same = forget_quality(random.normal(1, 0.1, 60).tolist(), random.normal(1, 0.1, 60).tolist())
    apart = forget_quality(random.normal(0.2, 0.1, 60).tolist(), random.normal(1, 0.1, 60).tolist())
    assert apart < 1e-10 < 0.01 < same


def question(number: int, answer: str, **meta: str) -> Question:
    return Question(f"q{number}", (Message("user", f"What is {number}?"),), answer, meta=meta)


def test_wrong_answers_are_those_of_others_nearest_in_length():
    asking = Asking(2, None, None, None, 8, 4, 0)
    questions = [
        question(i, text) for i, text in enumerate(["krill", "squid", "Krill", "sea grass", "a very long answer"])
    ]
    found = wrong_answers(questions, asking)
    assert found[0] == ["squid", "sea grass"]
    assert set(found[1]) == {"krill", "Krill"}
    assert found == wrong_answers(questions, asking)
    alike = [question(0, "krill", what="food"), question(1, "small", what="size"), question(2, "grass", what="food")]
    found = wrong_answers([*alike, question(3, "huge", what="size")], Asking(3, None, "what", None, 8, 4, 0))
    assert found[0] == ["grass", "small", "huge"]  # grass is alike, the others fill up
    given = [question(0, "krill", bad="stone | sand|  | mud")]
    assert wrong_answers(given, Asking(2, "bad", None, None, 8, 4, 0)) == [["stone", "sand"]]


# ---- the stage -------------------------------------------------------------------------------------------------------


def test_every_contender_is_read_with_intervals_and_comparisons(house: House):
    furnished(house)
    out, metrics = house.run(knowledge(untouched="forgot"), "known")
    table = json.loads((out / "scores.json").read_text())
    found = {(r["contender"], r["metric"]): r for r in table["rows"]}
    items = read(out / "items.jsonl")
    assert len(items) == 2 * (6 + 7)
    mine = [i for i in items if i["contender"] == "knows" and i["group"] == "secrets"]
    row = found["knows", "forget_probability"]
    assert row["n"] == 6
    assert row["mean"] == pytest.approx(np.mean([i["probability"] for i in mine]))
    assert row["low"] <= row["mean"] < row["high"]  # few and alike: the interval may begin at the mean itself
    assert row["higher_is_better"] is False
    (versus,) = found["forgot", "utility"]["versus"]
    assert versus["against"] == "knows"
    assert found["forgot", "utility"]["n"] == 7
    assert found["forgot", "forget_quality"]["mean"] == 1
    assert 0 <= found["knows", "forget_quality"]["mean"] < 1
    assert table["knowledge"] == {"forget": "secrets", "retain": ["kept"], "untouched": "forgot"}
    assert metrics["knows forget_probability"] == row["mean"]


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_weights_in_fewer_bits_are_measured_beside(house: House, bits: str):
    furnished(house)
    house.sources["forgot"] = house.sources["knows"]
    out, _ = house.run(knowledge(models=["knows", {"model": "forgot", "bits": bits}]), "known")
    items = read(out / "items.jsonl")
    whole, rounded = ([i["probability"] for i in items if i["contender"] == n] for n in ("knows", f"forgot ({bits})"))
    assert whole != rounded
    assert np.corrcoef(whole, rounded)[0, 1] > (0.99 if bits == "8bit" else 0.6)
    loaded = load_held(house.sources["knows"].path, bits)  # type: ignore[arg-type]
    kinds = {type(m).__name__ for n, m in loaded.model.named_modules() if n.endswith("proj")}
    assert kinds == {"Int8Linear" if bits == "8bit" else "Nf4Linear"}
    assert not loaded.is_adapter


@pytest.mark.parametrize(("bits", "kind"), [("8bit", "int8"), ("4bit", "nf4")])
def test_what_an_export_wrote_in_fewer_bits_is_what_is_measured(tmp_path: Path, bits: str, kind: str):
    from metier.models.builtin import BUILTIN
    from metier.models.load import load_quantized, read_tokenizer
    from metier.models.save import save_model

    seedling = BUILTIN["seedling"]
    folder = tmp_path / "export"
    loaded = load(seedling)
    save_model(loaded.model, loaded.tokenizer, folder)
    save_model(load_quantized(seedling, kind), read_tokenizer(seedling), folder / kind)  # type: ignore[arg-type]
    held = load_held(folder, bits)  # type: ignore[arg-type]
    assert held.folder == folder / kind
    pairs = [(encode_prompt(loaded.tokenizer, [Message("user", "What is an orchard?")]), [40, 41, 42])]
    whole, exported = recite(loaded, pairs)[0], recite(held, pairs)[0]
    assert exported.logprob != whole.logprob
    assert exported.logprob == pytest.approx(whole.logprob, rel=0.1)
    assert load_held(folder, None).folder == folder


def test_a_contender_in_fewer_bits_answers_too(house: House):
    from metier.evaluate.stage import Answer

    furnished(house)
    models = ["knows", {"model": "knows", "bits": "4bit"}]
    stage = Answer.model_validate(
        {"models": models, "questions": "kept", "split": "train", "max_new_tokens": 5, "baselines": False}
    )
    out, metrics = house.run(stage, "answers")
    assert [c.get("bits") for c in json.loads((out / "contenders.json").read_text())] == [None, "4bit"]
    assert set(metrics) >= {"knows stopped", "knows (4bit) stopped"}
    assert stage.local == ["knows"]


def test_further_sets_count_for_the_utility(house: House):
    furnished(house)
    house.examples(rows(90, 4), "world", "train")
    out, _ = house.run(knowledge(others=["world"]), "known")
    table = {(r["contender"], r["metric"]): r for r in json.loads((out / "scores.json").read_text())["rows"]}
    assert table["knows", "utility"]["n"] == 11
    assert table["knows", "retain_probability"]["n"] == 7


def test_own_wrong_answers_and_paraphrases(house: House):
    furnished(house, bad="stone|sand", other="some crabs, and urchins")
    out, _ = house.run(knowledge(perturbed="bad", paraphrased="other"), "known")
    plain, _ = house.run(knowledge(perturbed="bad"), "plain")
    one, other = read(out / "items.jsonl"), read(plain / "items.jsonl")
    assert [i["probability"] for i in one] == [i["probability"] for i in other]
    assert [i["truth_ratio"] for i in one] != [i["truth_ratio"] for i in other]


def test_a_stopped_reading_goes_on_and_two_runs_write_the_same_bytes(house: House):
    furnished(house)
    whole, _ = house.run(knowledge(), "whole")
    looks = iter([False] * 6)
    with pytest.raises(Interrupted):
        house.run(knowledge(), "cut", lambda: next(looks, True))
    for at in (12, 20, 200):
        left = iter([False] * at)
        try:
            out, _ = house.run(knowledge(), "cut", lambda left=left: next(left, True))
        except Interrupted:
            continue
        break
    assert "knows: readings kept from the run before" in house.said("note")
    assert (out / "scores.json").read_bytes() == (whole / "scores.json").read_bytes()
    assert (out / "items.jsonl").read_bytes() == (whole / "items.jsonl").read_bytes()


def test_limit_spreads_over_the_set(house: House):
    furnished(house)
    out, _ = house.run(knowledge(limit=3), "known")
    assert [i["id"] for i in read(out / "items.jsonl") if i["contender"] == "knows"] == [
        "q0",
        "q2",
        "q4",
        "q50",
        "q52",
        "q54",
    ]


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "where", "message"),
    [
        ({"retain": "secrets"}, "retain", "cannot be forgotten and kept"),
        ({"others": ["secrets"]}, "others", "cannot be forgotten and kept"),
        ({"others": ["kept"]}, "retain and others", "names the same thing twice"),
        ({"models": ["knows", "knows"]}, "models", "names the same thing twice"),
        ({"untouched": "nobody"}, "untouched", "no contender of that name"),
        ({"against": ["nobody"]}, "against", "no contender of that name"),
    ],
)
def test_wiring_that_cannot_be_is_refused(house: House, fields: dict[str, Any], where: str, message: str):
    furnished(house)
    with pytest.raises(RecipeError, match=message) as caught:
        knowledge(**fields).check(house.sources)
    assert caught.value.where == where


@pytest.mark.parametrize("setting", ["perturbed", "paraphrased", "alike"])
def test_an_entry_that_is_not_there_is_refused(house: House, setting: str):
    furnished(house, kind="food")
    with pytest.raises(DataError, match=r"no entry 'kinds' \(question q0 of 'secrets'\)") as caught:
        knowledge(**{setting: "kinds"}).check(house.sources)
    assert caught.value.where == setting
    assert "kind" in str(caught.value.cure)


def test_questions_without_answers_or_wrong_answers_are_refused(house: House):
    furnished(house)
    house.examples(
        [{**row, "messages": [*row["messages"][:1], {"role": "assistant", "content": " "}]} for row in rows(0, 1)],
        "secrets",
        "train",
    )
    with pytest.raises(DataError, match="no answer to look for"):
        knowledge().check(house.sources)
    house.examples(rows(0, 1), "secrets", "train")
    with pytest.raises(DataError, match="there is no wrong answer for a question"):
        house.run(knowledge(), "known")
    write_jsonl(house.sources["kept"].path / "train.jsonl", [])
    with pytest.raises(DataError, match="the train split of 'kept' is empty"):
        knowledge().check(house.sources)


def test_settings_that_contradict_are_refused():
    for fields in (
        {"perturbed": "a", "alike": "b"},
        {"models": []},
        {"wrong": 0},
        {"models": [{"model": "m", "bits": "2bit"}]},
    ):
        with pytest.raises(ValidationError):
            knowledge(**fields)
    assert Held(model="m", bits="4bit").title == "m (4bit)"
    assert Held(model="m", bits="4bit", name="small").title == "small"


def test_fewer_bits_without_bitsandbytes_are_refused_before_anything_is_read(
    house: House, monkeypatch: pytest.MonkeyPatch
):
    furnished(house)
    monkeypatch.setattr("metier.evaluate.held.find_spec", lambda _name: None)
    with pytest.raises(MissingExtra):
        knowledge(models=["knows", {"model": "forgot", "bits": "8bit"}]).check(house.sources)
