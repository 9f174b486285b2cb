"""Variants and smoke size: what they change, where errors point, and that their results have names of their own."""

from pathlib import Path

import pytest

from metier.core.errors import InputError
from metier.models.builtin import BUILTIN, STAND_INS, resolve
from metier.models.load import load
from metier.recipe import Recipe, load_recipe
from metier.trial.reshape import Trial

RECIPE = """\
name: trade
description: As it was.
steps:
  questions: {kind: examples, sources: [{path: qa.jsonl}], test_fraction: 0.2}
  adapter:
    kind: tune
    model: org/base-1b
    examples: questions
    method: {lora: {r: 8, targets: [c_attn]}}
    epochs: 3
  specialist: {kind: merge, model: adapter}
  answers: {kind: answer, models: [org/base-1b, specialist, other/rival-2b], questions: questions}
  scores: {kind: score, answers: answers}
variants:
  best:
    description: Better.
    steps:
      adapter: {method: {lora: {r: 32}}, epochs: null}
    smoke:
      steps: {adapter: {learning_rate: 0.5}}
smoke:
  models: {other/rival-2b: tiny-phi3}
  steps:
    adapter: {learning_rate: 0.25, method: {lora: {r: 4}}}
    extra: {kind: tune, model: tiny-gpt2, examples: questions, max_steps: 2}
    scores: null
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_ins: Path) -> Path:
    monkeypatch.setenv("METIER_CACHE", str(stand_ins))
    (tmp_path / "qa.jsonl").write_text('{"question": "a?", "answer": "b"}\n')
    return tmp_path


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def read(folder: Path, text: str = RECIPE, *overrides: str, trial: Trial) -> Recipe:
    (folder / "trade.yaml").write_text(text)
    return load_recipe(folder / "trade.yaml", overrides, trial=trial)


def refused(folder: Path, old: str, new: str, trial: Trial) -> str:
    assert old in RECIPE
    with pytest.raises(InputError) as caught:
        read(folder, RECIPE.replace(old, new, 1), trial=trial)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(f"{folder}/", "")


def test_smoke_puts_stand_ins_in_cuts_what_is_long_and_has_a_name_of_its_own(folder: Path):
    recipe = read(folder, trial=Trial(smoke=True))
    assert recipe.name == "trade-smoke"
    assert recipe.trial.notice.startswith("This is a smoke run")
    assert list(recipe.steps) == ["questions", "adapter", "specialist", "answers", "extra"]
    adapter = recipe.steps["adapter"]
    assert (adapter.model, adapter.learning_rate, adapter.epochs) == ("seedling", 0.25, 3)
    assert adapter.method.lora.targets == "all-linear"  # a field is replaced whole
    answers = recipe.steps["answers"]
    assert answers.models == ["seedling", "specialist", "tiny-phi3"]
    assert answers.limit == 40  # the usual cut, as the smoke block does not name the step
    assert adapter.max_steps is None  # which it does here
    assert recipe.offline


def test_a_variant_changes_what_it_names_and_smoke_comes_after_it(folder: Path):
    recipe = read(folder, trial=Trial("best", smoke=True))
    assert recipe.name == "trade-best-smoke"
    assert recipe.description == "Better."
    adapter = recipe.steps["adapter"]
    assert (adapter.epochs, adapter.learning_rate, adapter.method.lora.r) == (1, 0.5, 4)


def test_overrides_come_last(folder: Path):
    recipe = read(folder, RECIPE, "adapter.learning_rate=0.125", trial=Trial(smoke=True))
    assert recipe.steps["adapter"].learning_rate == 0.125


def test_without_a_trial_the_blocks_change_nothing(folder: Path):
    plain = read(folder, RECIPE.replace("org/base-1b", "seedling").replace("other/rival-2b", "adapter"), trial=Trial())
    assert plain.name == "trade"
    assert plain.steps["adapter"].epochs == 3
    assert plain.trial.notice == ""


def test_an_error_names_the_line_of_the_block_that_it_came_from(folder: Path):
    said = refused(folder, "learning_rate: 0.25", "learning_rate: -1", Trial(smoke=True))
    line = 1 + RECIPE.splitlines().index("    adapter: {learning_rate: 0.25, method: {lora: {r: 4}}}")
    assert f"trade.yaml:{line}: adapter.learning_rate" in said


@pytest.mark.parametrize(
    ("old", "new", "trial", "words"),
    [
        ("  models: {other", "  modells: {other", Trial(), ["smoke.modells", "unknown key", "models"]),
        ("tiny-phi3", "tiny-fi3", Trial(), ["smoke.models.other/rival-2b", "no such stand-in", "tiny-phi3"]),
        ("adapter: {learning_rate: 0.25", "adaptor: {learning_rate: 0.25", Trial(smoke=True), ["adaptor", "adapter"]),
        ("scores: null", "score: null", Trial(smoke=True), ["no such step to take out", "scores"]),
        ("  best:", "  Best:", Trial(), ["variants.Best", "not a name for a variant"]),
        ("steps: {adapter: {learning_rate: 0.5}}", "steps: 3", Trial(), ["variants.best.smoke.steps", "mapping"]),
        ("description: Better.", "descripton: Better.", Trial(), ["variants.best.descripton", "description"]),
        ("extra: {kind", "Extra: {kind", Trial(smoke=True), ["not a name for a step"]),
    ],
)
def test_bad_blocks_are_refused(folder: Path, old: str, new: str, trial: Trial, words: list[str]):
    said = refused(folder, old, new, trial)
    assert [word for word in words if word not in said] == []
    assert "trade.yaml:" in said


def test_a_variant_that_is_not_there(folder: Path):
    with pytest.raises(InputError, match="no such variant") as caught:
        read(folder, trial=Trial("bets"))
    assert "best" in str(caught.value)


def test_an_endpoint_is_refused_in_a_smoke_run(folder: Path):
    said = refused(folder, "other/rival-2b]", "{endpoint: http://127.0.0.1:9/v1, model: m}]", Trial(smoke=True))
    assert "offline" in said


def test_stand_ins_are_made_once_and_alike(folder: Path, tmp_path: Path):
    for name, model_type in STAND_INS.items():
        found = resolve(name, folder)
        assert found.link == name
        if name != "tiny-bert":
            loaded = load(found.path)
            assert loaded.model.config.model_type == model_type
            assert loaded.context == 1024
    again = tmp_path / "again"
    from metier.models.standins import make

    make("gpt2", again)
    assert (again / "model.safetensors").read_bytes() == (
        resolve("tiny-gpt2", folder).path / "model.safetensors"
    ).read_bytes()
    assert not set(STAND_INS) & set(BUILTIN)


def test_a_step_may_not_be_named_like_a_stand_in(folder: Path):
    assert "built-in" in refused(folder, "  specialist: {", "  tiny-opt: {", Trial())
