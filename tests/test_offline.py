"""A recipe that says `offline: true` refuses every model behind an endpoint, before anything else."""

from pathlib import Path

import pytest

from metier.core.errors import RecipeError
from metier.recipe import load_recipe

TEXT = """name: r
offline: {offline}
steps:
  data: {{kind: examples, sources: [{{path: d.jsonl}}]}}
  answers: {{kind: answer, models: [seedling{contender}], questions: data}}
  verdicts:
    kind: judge
    answers: answers
    judges:
      - evidence{judge}
"""
AWAY = ", {endpoint: 'http://127.0.0.1:1/v1', model: m}"
JUDGE = "\n      - {endpoint: 'https://example.org/v1', model: big}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    row = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'
    (tmp_path / "d.jsonl").write_text(row * 3)
    return tmp_path


def recipe(folder: Path, **parts: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(TEXT.format(**({"offline": "true", "contender": "", "judge": ""} | parts)))
    return path


def test_what_runs_here_is_offline(folder: Path):
    found = load_recipe(recipe(folder))
    assert found.offline
    assert found.resolved()["offline"] is True
    assert not load_recipe(recipe(folder, offline="false", judge=JUDGE)).offline


def test_endpoints_are_refused_with_their_places(folder: Path):
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe(folder, contender=AWAY, judge=JUDGE))
    text = str(error.value)
    assert "r.yaml:5: answers.models.1: the recipe is offline, and this model is behind an endpoint" in text
    assert "r.yaml:11: verdicts.judges.1: the recipe is offline" in text
    assert "found: 'https://example.org/v1'" in text
    assert error.value.exit_code == 2


def test_it_is_true_or_false(folder: Path):
    with pytest.raises(RecipeError, match=r"r\.yaml:2: offline: should be true or false"):
        load_recipe(recipe(folder, offline="maybe"))
