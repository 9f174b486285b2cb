"""`metier plan` and `metier check` say how small a difference the test questions can show, before anything is asked."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import special

import fakes
from metier.cli.check import check_recipe
from metier.cli.plan import show_plan
from metier.core.store import Store
from metier.measure import statistics
from metier.measure.detectable import RIGHT_OR_WRONG, SCORES, detectable, smallest
from metier.pipeline import run
from metier.recipe import load_recipe

RECIPE = """\
name: small
steps:
  asked: {kind: examples, sources: [{path: learn.jsonl}], test: [{path: qa.jsonl}]}
  answers: {kind: answer, models: [base, other], questions: asked}
  scores: {kind: score, answers: answers, metrics: [exact_match, token_f1, output_tokens]}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    fakes.save_tiny(tmp_path / "base")
    fakes.save_tiny(tmp_path / "other", seed=1)
    for name, count, word in (("qa", 60, "whale"), ("learn", 4, "crab")):
        asked = [f"Where does {word} {i} {chr(97 + i % 26) * 9} live?" for i in range(count)]
        rows = [{"question": question, "answer": f"sea {i}"} for i, question in enumerate(asked)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


def test_plan_tells_it_when_the_questions_are_made(recipe: Path, capsys: pytest.CaptureFixture[str]):
    show_plan(recipe, [], Path("store"), None)
    assert "scores: what it can show is known when its questions are made" in capsys.readouterr().out
    run(load_recipe(recipe), Store(Path("store")), only="asked")
    show_plan(recipe, [], Path("store"), None)
    out = capsys.readouterr().out
    (row,) = [line for line in out.splitlines() if line.startswith("scores  60")]
    assert row.split() == ["scores", "60", "18.1", "points", "12.7", "points", "19.9", "points"]
    assert "scores: a gain of 10 points would mostly be missed with 60 questions" in out
    show_plan(recipe, ["answers.limit=20"], Path("store"), None)
    assert "missed with 20 questions" in capsys.readouterr().out


def test_check_counts_the_questions_itself(recipe: Path, capsys: pytest.CaptureFixture[str]):
    check_recipe(recipe, [], Path("store"))
    out = capsys.readouterr().out
    assert "scores  60         18.1 points" in out
    assert "standard deviation of a difference: 0.5" in out


def test_what_is_told_before_is_what_the_assumed_scores_give():
    assert detectable(400).outcomes == pytest.approx(statistics.minimum_detectable(0.5 / 20))
    assert smallest(196, 0.5) == pytest.approx(0.1, abs=1e-3)
    assert not detectable(197).misses_plausible_gains
    assert detectable(195).misses_plausible_gains
    assert detectable(100, comparisons=10).corrected > detectable(100).outcomes
    assert detectable(100, comparisons=None).corrected is None


def test_the_assumed_deviations_are_those_of_such_scores():
    """Two contenders whose scores correlate at 0.5: outcomes at one half, and scores as token F1 has them."""
    rng = np.random.default_rng(0)
    hard, one, two = rng.normal(size=(3, 200_000))
    left, right = (special.ndtr((hard + own) / np.sqrt(2)) for own in (one, two))

    def scores(place: np.ndarray) -> np.ndarray:
        return np.where(place < 0.3, 0.0, np.where(place > 0.8, 1.0, special.betaincinv(2, 2.5, place)))

    assert np.std(scores(left) - scores(right)) == pytest.approx(SCORES, abs=0.04)
    share = 1 / 2
    assert np.sqrt(2 * share * (1 - share) * (1 - 0.5)) == RIGHT_OR_WRONG
