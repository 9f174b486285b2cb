"""A recipe's lock: what a name on the hub meant stays what it means."""

import json
from pathlib import Path

import pytest

from fake_stages import CATALOGUE
from metier.core.errors import InputError, ModelError
from metier.core.store import Store
from metier.pipeline import plan, run
from metier.recipe import Recipe, load_recipe

OLD, NEW = "0" * 40, "1" * 40


def download(cache: Path, commit: str, *branches: str) -> None:
    """As `hf download` leaves it."""
    folder = cache / "models--org--small"
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots" / commit / "config.json").write_text(json.dumps({"commit": commit}))
    (folder / "snapshots" / commit / "model.safetensors").write_bytes(b"weights")
    (folder / "refs").mkdir(exist_ok=True)
    for branch in branches:
        (folder / "refs" / branch).write_text(commit)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    download(tmp_path / "cache", OLD, "main", "v1")
    return tmp_path / "cache"


def recipe(folder: Path, model: str = "org/small") -> Recipe:
    (folder / "a.txt").write_text("text")
    (folder / "recipe.yaml").write_text(
        "name: demo\nsteps:\n  texts: {kind: texts, sources: [{path: a.txt}]}\n"
        f"  taught: {{kind: teach, model: {model}, documents: texts}}\n"
    )
    return load_recipe(folder / "recipe.yaml", catalogue=CATALOGUE)


@pytest.mark.parametrize("model", ["org/small", "org/small@v1"])
def test_the_first_run_pins_and_later_ones_stay(tmp_path: Path, cache: Path, model: str):
    store = Store(tmp_path / "store")
    plan(recipe(tmp_path, model), store)
    assert not (tmp_path / "recipe.lock").exists()
    run(recipe(tmp_path, model), store)
    assert json.loads((tmp_path / "recipe.lock").read_text()) == {"models": {model: OLD}}
    download(cache, NEW, "main", "v1")
    assert [step.state for step in plan(recipe(tmp_path, model), store)] == ["cached", "cached"]
    (tmp_path / "recipe.lock").unlink()
    assert [step.state for step in plan(recipe(tmp_path, model), store)] == ["cached", "run"]
    run(recipe(tmp_path, model), store)
    assert json.loads((tmp_path / "recipe.lock").read_text()) == {"models": {model: NEW}}


def test_a_commit_in_the_recipe_needs_no_lock(tmp_path: Path, cache: Path):
    run(recipe(tmp_path, f"org/small@{OLD}"), Store(tmp_path / "store"))
    assert not (tmp_path / "recipe.lock").exists()


def test_a_pinned_commit_that_is_not_there(tmp_path: Path, cache: Path):
    (tmp_path / "recipe.lock").write_text(json.dumps({"models": {"org/small": NEW}}))
    with pytest.raises(ModelError, match=f"hf download org/small --revision {NEW}"):
        plan(recipe(tmp_path), Store(tmp_path / "store"))


@pytest.mark.parametrize("text", ["{", "[]", '{"models": []}', "{}"])
def test_a_damaged_lock(tmp_path: Path, cache: Path, text: str):
    (tmp_path / "recipe.lock").write_text(text)
    with pytest.raises(InputError, match="the lock cannot be read"):
        plan(recipe(tmp_path), Store(tmp_path / "store"))
