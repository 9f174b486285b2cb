"""`metier fetch`: refused before anything is fetched where it would not fit, with the settings that would."""

from importlib import import_module
from pathlib import Path

import pytest
from tests.models.test_hub import FILES, GIGABYTE, FakeHub

from metier.core.errors import InputError
from metier.core.machine import Machine
from metier.models import builtin, hub, sizes
from metier.models.hub import Found
from metier.trial.reshape import Trial

fetching = import_module("metier.cli.fetch")  # the package has a command of that name
BASE = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
RECIPE = f"""\
name: t
steps:
  texts: {{kind: documents, sources: [{{path: a.jsonl}}]}}
  whole: {{kind: pretrain, model: {BASE}, documents: texts, block_size: 512, batch_size: 4}}
  likelihood: {{kind: perplexity, models: [{BASE}, whole], documents: [texts]}}
"""
LARGE = Machine(64.0 * GIGABYTE, "cuda", "bf16")
T4 = Machine(15.0 * GIGABYTE, "cuda", "fp16")


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for place in (hub, sizes, builtin):
        monkeypatch.setattr(place, "cached_snapshot", lambda ref: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    (tmp_path / "a.jsonl").write_text('{"text": "' + "word " * 3000 + '"}\n')
    path = tmp_path / "t.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []
    monkeypatch.setattr(fetching, "fetch", lambda found: asked.append(found.ref))
    monkeypatch.setattr(fetching, "check_disk", lambda found: None)
    return asked


def files(**more: int) -> FakeHub:
    return FakeHub({**FILES, BASE: {"config.json": 700, "model.safetensors": 2_200_000_000, **more}})


def go(
    recipe: Path, machine: Machine, api: FakeHub, *, only_look: bool = False, overrides: tuple[str, ...] = ()
) -> None:
    fetching.fetch_recipe(
        recipe, overrides, recipe.parent / "store", trial=Trial(), only_look=only_look, api=api, machine=machine
    )


def test_what_fits_is_fetched_each_model_once(recipe: Path, fetched: list[str], capsys: pytest.CaptureFixture[str]):
    go(recipe, LARGE, files())
    assert fetched == [BASE]
    said = capsys.readouterr().out
    assert "2.2 GB" in said
    assert "needs no network" in said
    assert not (recipe.parent / "store/objects").exists()


def test_looking_fetches_nothing(recipe: Path, fetched: list[str]):
    go(recipe, LARGE, files(), only_look=True)
    assert fetched == []


def test_a_gpu_too_small_is_told_with_what_would_fit(recipe: Path, fetched: list[str]):
    with pytest.raises(InputError) as caught:
        go(recipe, T4, files())
    said = str(caught.value)
    assert "whole" in said
    assert "too little memory" in said
    assert "15.0 GB are free" in said
    assert "method: {lora: {r: 16}}" in said
    assert fetched == []
    go(recipe, T4, files(), overrides=("whole.method={lora: {r: 16}}",))  # what it says does fit
    assert fetched == [BASE]


def test_everything_wrong_is_said_at_once(recipe: Path, fetched: list[str]):
    api = files()
    api.gated = (BASE,)
    with pytest.raises(InputError) as caught:
        go(recipe, T4, api)
    said = str(caught.value)
    assert "gated" in said
    assert "too little memory" in said
    assert fetched == []


def test_too_little_disk_comes_before_fetching(recipe: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    monkeypatch.setattr(fetching, "fetch", lambda found: asked.append(found.ref))
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda place: type("Usage", (), {"free": GIGABYTE}))
    with pytest.raises(InputError, match="too little disk"):
        go(recipe, LARGE, files())
    assert asked == []


def test_a_closed_network_is_said(recipe: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="switched off"):
        go(recipe, LARGE, files())


def test_a_recipe_without_models_of_the_hub(recipe: Path, capsys: pytest.CaptureFixture[str]):
    recipe.write_text(RECIPE.replace(BASE, "seedling"))
    go(recipe, LARGE, files())
    assert "nothing to fetch" in capsys.readouterr().out


def test_found_models_are_told_with_their_size():
    assert fetching._row(Found("org/a", "f" * 40, {}, here=True)) == ("org/a", "here already", "f" * 12)
