"""`metier ablate`: what is made again, what is compared, and what cannot be left out."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.fakes import save_tiny

from metier.cli.ablate import run_ablations
from metier.cli.ablation import ablatable, ablate
from metier.core.errors import RecipeError
from metier.core.store import Store
from metier.pipeline import plan
from metier.pipeline import run as run_recipe
from metier.recipe import Recipe, load_recipe

RECIPE = """\
name: small
steps:
  texts: {kind: documents, sources: [{path: texts.jsonl}], heldout: [{path: held.jsonl}]}
  qa: {kind: examples, sources: [{path: train.jsonl}], test: [{path: test.jsonl}]}
  reader: {kind: pretrain, model: base, documents: texts, max_steps: 2, block_size: 64, batch_size: 2}
  adapter: {kind: tune, model: reader, examples: qa, method: {lora: {r: 2, alpha: 4}}, max_steps: 2, batch_size: 4}
  specialist: {kind: merge, model: adapter}
  answers: {kind: answer, models: [base, reader, specialist], questions: qa, max_new_tokens: 6}
  scores: {kind: score, answers: answers, metrics: [token_f1], resamples: 200}
  likelihood: {kind: perplexity, models: [base, specialist], documents: [texts]}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ablate")
    save_tiny(made / "base")
    for name, first in (("texts", 0), ("held", 50)):
        texts = [
            {"id": f"{name}{i}", "text": f"Otter {i} eats {i * 7} crabs near bay {i * 3}. "}
            for i in range(first, first + 9)
        ]
        (made / f"{name}.jsonl").write_text("".join(json.dumps(t) + "\n" for t in texts))
    for name, first in (("train", 0), ("test", 70)):
        rows = [{"question": f"Where is {i}?", "answer": f"bay {i * 3}"} for i in range(first, first + 8)]
        (made / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (made / "recipe.yaml").write_text(RECIPE)
    return made


def load(folder: Path, *overrides: str) -> Recipe:
    return load_recipe(folder / "recipe.yaml", overrides)


def test_what_follows_is_made_again_from_what_the_step_read(folder: Path):
    found = ablate(load(folder), ["reader"])
    added = {n: s.model_dump() for n, s in found.recipe.steps.items() if n not in load(folder).steps}
    assert list(added) == [
        "adapter-without-reader",
        "specialist-without-reader",
        "answers-without-reader",
        "likelihood-without-reader",
    ]
    assert added["adapter-without-reader"]["model"] == "base"
    assert added["specialist-without-reader"]["model"] == "adapter-without-reader"
    assert added["answers-without-reader"]["models"] == ["specialist-without-reader"]
    assert added["answers-without-reader"]["baselines"] is False
    assert [(p.title, p.step) for p in found.pairs] == [
        ("specialist without reader", "answers"),
        ("specialist without reader", "likelihood"),
    ]


def test_a_step_that_is_a_contender_is_compared_with_what_it_started_from(folder: Path):
    found = ablate(load(folder, "answers.models=[base, reader]", "likelihood.models=[base]"), ["reader"])
    assert [(p.contender, p.other) for p in found.pairs] == [("reader", "base")]
    assert "adapter-without-reader" in found.recipe.steps


def test_the_table_sets_both_beside_one_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    store = folder / "store"
    run_recipe(load(folder), Store(store))
    before = {p.name for p in (store / "objects").iterdir()}
    run_ablations(folder / "recipe.yaml", [], store, folder / "runs", ["reader"], "auto", each=False)
    assert len({p.name for p in (store / "objects").iterdir()} - before) == 4, "all else comes from the store"
    printed = capsys.readouterr().out
    line = next(
        line for line in printed.splitlines() if line.split()[:4] == ["specialist", "without", "reader", "token_f1"]
    )
    assert line.split()[-1] in ("worse", "better", "difference")
    found = json.loads((folder / "runs/small/ablations.json").read_text())
    rows = {(r["contender"], r["metric"], r["group"]): r for r in found["rows"]}
    bits = rows["without", "bits_per_byte", "specialist without reader, texts"]
    full = json.loads(next(Store(store).ref("small", "likelihood").files.glob("scores.json")).read_text())  # type: ignore[union-attr]
    mean = next(r["mean"] for r in full["rows"] if r["contender"] == "specialist" and r["metric"] == "bits_per_byte")
    assert rows["full", "bits_per_byte", "specialist without reader, texts"]["mean"] == pytest.approx(mean)
    assert bits["versus"][0]["difference"] == pytest.approx(bits["mean"] - mean)
    assert found["pairs"][0]["title"] == "specialist without reader"
    run_ablations(folder / "recipe.yaml", [], store, folder / "runs", [], "quiet", each=True)
    both = json.loads((folder / "runs/small/ablations.json").read_text())
    assert both["without"] == ["reader", "adapter"]
    assert capsys.readouterr().out.strip() == f"Written: {folder / 'runs/small/ablations.json'}"
    tests = sum(len(r["versus"]) for r in both["rows"])
    smallest = min((v for r in both["rows"] for v in r["versus"]), key=lambda v: v["p"])
    assert smallest["p_holm"] == pytest.approx(min(1.0, tests * smallest["p"]))
    assert [s.state for s in plan(load(folder), Store(store))] == ["cached"] * 8


CHOOSING = """\
name: choosing
steps:
  texts: {kind: documents, sources: [{path: texts.jsonl}], heldout: [{path: held.jsonl}]}
  qa: {kind: examples, sources: [{path: train.jsonl}], test: [{path: asked.jsonl, keep: [choices, label]}]}
  reader: {kind: pretrain, model: base, documents: texts, max_steps: 2, block_size: 64, batch_size: 2}
  adapter: {kind: tune, model: reader, examples: qa, method: {lora: {r: 2, alpha: 4}}, max_steps: 2, batch_size: 4}
  choices: {kind: choose, models: [base, adapter], questions: qa}
"""


def test_what_stands_for_a_contender_chooses_among_the_same_choices(folder: Path, capsys: pytest.CaptureFixture[str]):
    rows = [
        {"question": f"Is {i} even?", "answer": label, "choices": "yes|no", "label": label}
        for i, label in enumerate(["yes", "no"] * 6)
    ]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "choosing.yaml").write_text(CHOOSING)
    recipe = load_recipe(folder / "choosing.yaml")
    assert ablatable(recipe) == ["reader", "adapter"]
    added = ablate(recipe, ["reader"])
    assert added.recipe.steps["choices-without-reader"].model_dump()["models"] == ["adapter-without-reader"]
    store = folder / "choosing-store"
    run_ablations(folder / "choosing.yaml", [], store, folder / "runs", [], "auto", each=True)
    found = json.loads((folder / "runs/choosing/ablations.json").read_text())
    assert [pair["title"] for pair in found["pairs"]] == ["adapter without reader", "adapter without adapter"]
    made = {(r["group"], r["metric"], r["contender"]): r for r in found["rows"]}
    full = Store(store).ref("choosing", "choices")
    assert full is not None
    for title in ("adapter without reader", "adapter without adapter"):
        assert made[title, "accuracy", "full"]["mean"] == pytest.approx(full.record["metrics"]["adapter accuracy"])
        assert made[title, "accuracy", "full"]["n"] == 12
        assert {"accuracy", "accuracy_pmi", "macro_f1", "ece"} <= {m for group, m, _ in made if group == title}
    left = made["adapter without adapter", "accuracy", "without"]["versus"][0]
    base = made["adapter without adapter", "accuracy", "without"]["mean"]
    assert left["difference"] == pytest.approx(base - full.record["metrics"]["adapter accuracy"])
    assert "adapter without reader" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "without", "said"),
    [
        ([], ["raeder"], "did you mean 'reader'"),
        ([], ["texts"], r"texts: 'texts' makes documents, no model.*\n.*\n?.*reader, adapter"),
        ([], ["specialist"], "only writes a model down in another form"),
        (["answers.models=[base]", "likelihood.models=[base]"], ["reader"], "no contender .* depends on 'reader'"),
        ([], [], "no step to leave out"),
    ],
)
def test_what_cannot_be_left_out(folder: Path, changed: list[str], without: list[str], said: str):
    with pytest.raises(RecipeError, match=said):
        run_ablations(folder / "recipe.yaml", changed, folder / "none", folder / "runs", without, "quiet", each=False)
    assert not (folder / "none").exists()


def test_each_takes_no_names(folder: Path):
    assert ablatable(load(folder)) == ["reader", "adapter"]
    options: dict[str, Any] = {"each": True}
    with pytest.raises(RecipeError, match="name none"):
        run_ablations(folder / "recipe.yaml", [], folder / "none", folder / "runs", ["reader"], "quiet", **options)
