"""`metier plan` says what training steps will take, before anything is made."""

import json
import time
from pathlib import Path

import pytest

import fakes
from metier.cli.plan import show_plan
from metier.core.machine import remember

RECIPE = """\
name: small
steps:
  articles: {kind: documents, sources: [{path: a.jsonl}]}
  read: {kind: pretrain, model: base, documents: articles, block_size: 64}
  again: {kind: pretrain, model: read, documents: articles, block_size: 64, epochs: 2}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    fakes.save_tiny(tmp_path / "base")
    rows = [{"text": f"Whale number {i} is large and swims far."} for i in range(200)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


def test_every_training_step_is_estimated(recipe: Path, capsys: pytest.CaptureFixture[str]):
    show_plan(recipe, [], Path("store"), None)
    out = capsys.readouterr().out
    assert "3 of 3 steps will run." in out
    lines = {line.split()[0]: line for line in out.split("what holds the memory")[1].splitlines() if line}
    assert "about" in lines["read"]
    assert "MB" in lines["read"]
    assert "base" in lines["again"]
    assert "articles" not in lines
    assert "Run `metier doctor` for times" in out
    assert "of memory are free" in out


def test_times_come_from_what_the_doctor_measured(recipe: Path, capsys: pytest.CaptureFixture[str]):
    remember(Path("store"), {"device": "cpu", "auto": "fp32", "peaks": {"fp32": 1e11}})
    show_plan(recipe, [], Path("store"), "read")
    out = capsys.readouterr().out
    assert "doctor" not in out
    assert " s " in out.split("what holds the memory")[1]
    started = time.perf_counter()
    show_plan(recipe, [], Path("store"), None)
    assert time.perf_counter() - started < 0.5
