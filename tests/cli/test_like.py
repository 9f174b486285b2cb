"""`metier init --like`: a copy that is sound at once, with all that it reads, and over nothing."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from metier.cli import app
from metier.cli.like import recipes_folder, write_like
from metier.core.errors import InputError
from metier.core.store import Store
from metier.pipeline import check, plan
from metier.recipe import load_recipe
from metier.trial.reshape import Trial

NAMES = sorted(path.stem for path in recipes_folder().glob("*.yaml"))


@pytest.mark.parametrize("name", ["sleep-stress", "pubmedqa", "marine-biology", "synthesis"])
def test_a_copy_is_sound_and_has_a_name_of_its_own(name: str, tmp_path: Path):
    write_like(name, tmp_path / "mine/night.yaml")
    recipe = load_recipe(tmp_path / "mine/night.yaml", trial=Trial(smoke=True))
    assert recipe.name == "night-smoke"
    check(recipe, plan(recipe, Store(tmp_path / "store")))
    text = (tmp_path / "mine/night.yaml").read_text(encoding="utf-8")
    assert f"recipes/{name}.yaml" not in text
    folders = {path.parent for path in (tmp_path / "mine/data").rglob("*") if path.is_file()}
    assert all((folder / "README.md").is_file() for folder in folders)


def test_nothing_is_written_over(tmp_path: Path):
    out = tmp_path / "a.yaml"
    write_like("medication", out)
    with pytest.raises(InputError, match="there already"):
        write_like("medication", out)
    (tmp_path / "data/medication/train.jsonl").write_text("mine")
    with pytest.raises(InputError, match="another file of that name") as caught:
        write_like("medication", tmp_path / "b.yaml")
    assert "train.jsonl" in str(caught.value)
    assert not (tmp_path / "b.yaml").exists()
    assert (tmp_path / "data/medication/train.jsonl").read_text() == "mine"


def test_a_name_that_there_is_not(tmp_path: Path):
    with pytest.raises(InputError, match="no such recipe") as caught:
        write_like("sleep-stres", tmp_path / "a.yaml")
    assert "sleep-stress" in str(caught.value)
    assert caught.value.exit_code == 2


def test_the_command_takes_data_or_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    assert runner.invoke(app, ["init"]).exit_code == 2
    assert runner.invoke(app, ["init", "x.jsonl", "--like", "pharma"]).exit_code == 2
    done = runner.invoke(app, ["init", "--like", "pharma", "--out", "own.yaml"])
    assert done.exit_code == 0, done.output
    assert "files of data beside it" in done.output
    assert (tmp_path / "data/pharma/corpus.jsonl").is_file()
    assert len(NAMES) == 12
