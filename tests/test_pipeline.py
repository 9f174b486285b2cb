"""The pipeline: what is made again and why, what a run leaves behind however it ends, and who may share a store."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest

from fake_stages import CATALOGUE, Texts
from metier.core.errors import DataError, InputError, Interrupted, TrainingError
from metier.core.store import RECORD, Store
from metier.pipeline import Result, plan, run
from metier.recipe import Recipe, load_recipe

FAKES = Path(__file__).parent / "fake_stages.py"
RECIPE = """\
name: demo
steps:
  articles: {kind: texts, sources: [{path: "*.txt"}]}
  taught: {kind: teach, model: base, documents: articles, learning_rate: 2e-5}
  again: {kind: teach, model: taught, documents: articles}
  asked: {kind: ask, models: [base, taught, again]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "base" / "model.safetensors").write_text("weights")
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


@pytest.fixture
def store(folder: Path) -> Store:
    return Store(folder / "store")


def load(folder: Path, *overrides: str) -> Recipe:
    return load_recipe(folder / "recipe.yaml", overrides, CATALOGUE)


def go(folder: Path, store: Store, *overrides: str, **named: Any) -> tuple[Result, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    return run(load(folder, *overrides), store, listeners=[events.append], **named), events


def whys(folder: Path, store: Store, *overrides: str) -> dict[str, str]:
    """The steps that would run, and why."""
    return {step.name: step.why for step in plan(load(folder, *overrides), store) if step.state == "run"}


# ---- what runs, and why -------------------------------------------------------------------------------------------


def test_a_plan_writes_nothing(folder: Path, store: Store):
    assert whys(folder, store) == dict.fromkeys(("articles", "taught", "again", "asked"), "new")
    assert not store.root.exists()


def test_a_second_run_does_nothing(folder: Path, store: Store):
    first, events = go(folder, store)
    assert [e["event"] for e in events].count("finished") == 4
    before = {p: p.stat().st_mtime_ns for p in store.objects.rglob("*")}
    second, events = go(folder, store)
    assert [e["event"] for e in events] == ["run_started", "cached", "cached", "cached", "cached", "run_finished"]
    assert {p: p.stat().st_mtime_ns for p in store.objects.rglob("*")} == before
    assert {n: a.key for n, a in first.artifacts.items()} == {n: a.key for n, a in second.artifacts.items()}
    assert all(step.last_seconds is not None for step in second.planned)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("again.epochs=2", {"again": "epochs 1 -> 2", "asked": "models.2: again changed"}),
        ("taught.learning_rate=5e-5", {"taught": "learning_rate 2e-5 -> 5e-5", "again": "model: taught changed"}),
        ("taught.learning_rate=null", {"taught": "learning_rate 2e-5 -> null"}),
        ("taught.method={lora: {r: 4}}", {"taught": "method full -> {lora: {r: 4, targets: all-linear}}"}),
        ("taught.shuffle=false", {"taught": "shuffle true -> false"}),
        ("again.model=base", {"again": "model taught -> base", "asked": "models.2: again changed"}),
        ("asked.models=[base]", {"asked": "models [base, taught, again] -> [base]"}),
        ("articles.min_chars=1", {"articles": "min_chars 0 -> 1", "taught": "documents: articles changed"}),
    ],
)
def test_a_changed_value_runs_its_step_and_what_follows(folder: Path, store: Store, override: str, expected: dict):
    go(folder, store)
    found = whys(folder, store, override)
    assert {name: found[name] for name in expected} == expected
    order = ["articles", "taught", "again", "asked"]
    assert list(found) == order[order.index(next(iter(expected))) :]


def test_many_differences_are_counted(folder: Path, store: Store):
    go(folder, store)
    changes = ("epochs=2", "shuffle=false", "learning_rate=1", "method={freeze: {blocks: 1}}", "model=again2")
    shutil.copytree(folder / "base", folder / "again2")
    assert whys(folder, store, *(f"taught.{c}" for c in changes))["taught"].endswith(", and 1 more")


def test_going_back_finds_the_old_artifact(folder: Path, store: Store):
    go(folder, store)
    go(folder, store, "taught.epochs=2")
    assert whys(folder, store) == {}
    go(folder, store)
    assert whys(folder, store, "taught.epochs=3")["taught"] == "epochs 1 -> 3"


def test_a_runtime_field_changes_nothing(folder: Path, store: Store):
    go(folder, store)
    assert whys(folder, store, "taught.seconds=9", "articles.workers=8") == {}


def test_changed_contents_count_and_names_do_not(folder: Path, store: Store):
    go(folder, store)
    (folder / "a.txt").rename(folder / "z.txt")
    assert whys(folder, store) == {}
    (folder / "z.txt").write_text("other")
    assert whys(folder, store)["articles"] == "sources.0.path: *.txt changed"
    (folder / "z.txt").write_text("hello")
    (folder / "b.txt").write_text("")
    assert "articles" in whys(folder, store)


def test_the_suffix_counts_because_it_says_how_a_file_is_read(folder: Path, store: Store):
    go(folder, store)
    (folder / "a.txt").rename(folder / "a.md")
    assert "articles" in whys(folder, store, "articles.sources.0.path=a.md")


def test_a_changed_outside_model_counts(folder: Path, store: Store):
    go(folder, store)
    (folder / "base" / "model.safetensors").write_text("other")
    assert whys(folder, store)["taught"] == "model: base changed"


def test_a_new_version_of_a_stage_counts(folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch):
    go(folder, store)
    monkeypatch.setattr(Texts, "version", 2)
    assert whys(folder, store)["articles"] == "stage version 1 -> 2"


def test_what_is_gone_is_made_again_alike(folder: Path, store: Store):
    result, _ = go(folder, store)
    outputs = result.artifacts["taught"].record["outputs"]
    result.artifacts["taught"].folder.rename(folder / "aside")
    assert whys(folder, store) == {"taught": "its artifact is gone"}
    assert whys(folder, store, "taught.epochs=2")["taught"] == "changed, and what it last made is gone"
    again, _ = go(folder, store)
    assert again.artifacts["taught"].record["outputs"] == outputs


def test_another_recipe_finds_the_same_artifact(folder: Path, store: Store):
    go(folder, store)
    (folder / "recipe.yaml").write_text(RECIPE.replace("name: demo", "name: other").replace("taught", "learned"))
    assert whys(folder, store) == {}
    _, events = go(folder, store)
    assert "finished" not in {e["event"] for e in events}
    (folder / "recipe.yaml").write_text(RECIPE.replace("taught:", "articles2:", 1).replace("taught", "articles2"))
    assert whys(folder, store) == {}


def test_a_step_that_becomes_another_kind(folder: Path, store: Store):
    go(folder, store)
    text = RECIPE.replace(
        "asked: {kind: ask, models: [base, taught, again]}", "asked: {kind: texts, sources: [{path: a.txt}]}"
    )
    (folder / "recipe.yaml").write_text(text)
    go(folder, store)
    (folder / "recipe.yaml").write_text(RECIPE.replace("again]", "again, base]"))
    assert whys(folder, store)["asked"] == "kind texts -> ask"


def test_two_stores_get_identical_outputs(folder: Path):
    one, _ = go(folder, Store(folder / "one"))
    two, _ = go(folder, Store(folder / "two"))
    for name, artifact in one.artifacts.items():
        assert artifact.key == two.artifacts[name].key
        assert artifact.record["outputs"] == two.artifacts[name].record["outputs"]
        assert artifact.record["outputs"]


def test_only_one_step_and_what_it_needs(folder: Path, store: Store):
    result, _ = go(folder, store, only="taught")
    assert list(result.artifacts) == ["articles", "taught"]
    with pytest.raises(InputError, match="no such step"):
        plan(load(folder), store, only="tought")


# ---- what a run leaves behind -------------------------------------------------------------------------------------


def test_the_record_says_it_all(folder: Path, store: Store):
    result, _ = go(folder, store)
    record = result.artifacts["taught"].record
    assert record["config"]["epochs"] == 1
    assert record["config"]["seconds"] == 0.0
    assert record["inputs"]["articles"]["link"] == f"../../{result.artifacts['articles'].key}/files"
    assert record["inputs"]["articles"]["field"] == "documents"
    assert record["inputs"]["base"]["link"] == str(folder / "base")
    assert record["metrics"] == {"loss": 0.5}
    assert record["peak_rss_bytes"] > 1_000_000
    assert {
        "format",
        "kind",
        "version",
        "produces",
        "step",
        "recipe",
        "identity",
        "seconds",
        "started",
    } <= record.keys()
    assert {"python", "torch", "metier"} <= record["versions"].keys()
    events = [e["event"] for e in result.artifacts["taught"].events()]
    assert events == ["started", "progress", "note", "finished"]


def test_bad_input_of_any_step_stops_the_run_before_it_starts(folder: Path, store: Store):
    (folder / "empty.txt").write_text("")
    (folder / "void.txt").write_text("")
    text = (
        RECIPE
        + "  more: {kind: texts, sources: [{path: empty.txt}]}\n  rest: {kind: texts, sources: [{path: void.txt}]}\n"
    )
    (folder / "recipe.yaml").write_text(text.replace('"*.txt"', "a.txt"))
    with pytest.raises(DataError) as caught:
        go(folder, store)
    assert "recipe.yaml:7: more:" in str(caught.value)
    assert "recipe.yaml:8: rest:" in str(caught.value)
    assert "empty.txt: the file is empty" in str(caught.value)
    assert not store.root.exists()


def test_a_failing_step_is_named_and_the_rest_is_kept(folder: Path, store: Store):
    events: list[dict[str, Any]] = []
    with pytest.raises(TrainingError, match=r"recipe\.yaml:4: taught: the loss is not finite"):
        run(load(folder, "taught.broken=loss"), store, listeners=[events.append])
    assert [e["event"] for e in events if e["step"] == "taught"] == ["started", "failed"]
    assert list(whys(folder, store)) == ["taught", "again", "asked"]
    assert len(list(store.objects.iterdir())) == 1


def test_a_mistake_in_a_stage_keeps_its_traceback_and_names_the_step(folder: Path, store: Store):
    with pytest.raises(ZeroDivisionError) as caught:
        go(folder, store, "taught.broken=bug")
    assert "this happened in step 'taught'" in caught.value.__notes__[0]
    assert len(list(store.objects.iterdir())) == 1


def test_a_metric_must_be_a_number(folder: Path, store: Store):
    with pytest.raises(TrainingError, match="metric 'loss' is not a finite number"):
        go(folder, store, "taught.broken=nan")


def test_a_stopped_step_goes_on_where_it_was(folder: Path, store: Store):
    asked = chain([False] * 7, repeat(True))  # four in planning, before each of two steps, in the first round
    with pytest.raises(Interrupted, match="taught: step 'taught' was stopped") as caught:
        go(folder, store, "taught.epochs=5", stop=lambda: next(asked))
    assert caught.value.exit_code == 75
    assert list(whys(folder, store, "taught.epochs=5")) == ["taught", "again", "asked"]
    result, events = go(folder, store, "taught.epochs=5")
    assert "went on from round 1" in [e.get("text") for e in events]
    fresh, _ = go(folder, Store(folder / "fresh"), "taught.epochs=5")
    assert result.artifacts["asked"].record["outputs"] == fresh.artifacts["asked"].record["outputs"]
    assert [p.suffix for p in (store.root / "scratch").iterdir()] == [".lock"] * 4


def test_a_stop_before_a_step(folder: Path, store: Store):
    with pytest.raises(Interrupted, match="stopped on request"):
        go(folder, store, stop=lambda: True)
    assert not store.objects.exists()


# ---- real processes -----------------------------------------------------------------------------------------------

SLOW = ("--set", "taught.epochs=20", "--set", "taught.seconds=0.1")


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(FAKES), "run", "recipe.yaml", "--json", "--store", "store", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_progress(process: "subprocess.Popen[str]", rounds: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "progress" and event["done"] >= rounds:
            return
    raise AssertionError(f"it ended early: {process.stderr.read() if process.stderr else ''}")


def assert_all_whole(store: Store) -> None:
    for folder in store.objects.iterdir():
        assert (folder / RECORD).exists()
        assert not (folder / "files" / "half").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_half_artifact_and_the_next_run_goes_on(folder: Path, store: Store, number: int):
    process = start(folder, *SLOW)
    wait_for_progress(process, 3)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 75, err
        assert "stopping at the next safe point" in err
        assert "run the same command again" in err
        assert "Traceback" not in err
    assert_all_whole(store)
    assert len(list(store.objects.iterdir())) == 1
    result, events = go(folder, store, "taught.epochs=20")
    (note,) = [e["text"] for e in events if e["event"] == "note" and e["step"] == "taught"]
    assert int(note.rsplit(" ", 1)[1]) >= 3
    assert_all_whole(store)
    fresh, _ = go(folder, Store(folder / "fresh"), "taught.epochs=20")
    assert result.artifacts["asked"].record["outputs"] == fresh.artifacts["asked"].record["outputs"]


def test_a_second_signal_stops_at_once(folder: Path, store: Store):
    process = start(folder, "--set", "taught.epochs=2", "--set", "taught.seconds=30")
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "started" and event["step"] == "taught":
            break
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130, err
    assert_all_whole(store)
    assert not list((store.root / "scratch").glob("*/build"))


def test_two_processes_share_a_store(folder: Path, store: Store):
    quick = ("--set", "taught.epochs=8", "--set", "taught.seconds=0.1")
    both = [start(folder, *quick), start(folder, *quick)]
    outs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outs
    events = [[json.loads(line) for line in out.splitlines()] for out, _ in outs]
    made = [e["step"] for one in events for e in one if e["event"] == "finished"]
    assert sorted(made) == ["again", "articles", "asked", "taught"]  # each exactly once between them
    assert_all_whole(store)
    assert len(list(store.objects.iterdir())) == 4


def test_a_killed_holder_of_the_lock_does_not_block_the_next(folder: Path, store: Store):
    process = start(folder, *SLOW)
    wait_for_progress(process, 1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)
    start_time = time.monotonic()
    go(folder, store, "taught.epochs=2")
    assert time.monotonic() - start_time < 5
