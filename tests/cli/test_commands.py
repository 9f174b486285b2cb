"""The commands, run in this process on small stages: what they print, their exit codes, and what they leave."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import fake_stages
from metier import __version__
from metier.cli import main

RECIPE = """\
name: demo
steps:
  articles: {kind: texts, sources: [{path: "*.txt"}]}
  taught: {kind: teach, model: base, documents: articles, learning_rate: 2e-5}
  asked: {kind: ask, models: [base, taught]}
"""
Metier = Callable[..., tuple[int, str, str]]


@pytest.fixture
def metier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Metier:
    """Call the command line in a folder with a recipe: (exit code, stdout, stderr)."""
    monkeypatch.setitem(sys.modules, "metier.stages", sys.modules.get("metier.stages"))  # put back afterwards
    fake_stages.install()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("METIER_STORE", raising=False)
    monkeypatch.setenv("WANDB_MODE", "")  # tracking sets both; put back afterwards
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "base" / "model.safetensors").write_text("weights")
    (tmp_path / "a.txt").write_text("hello\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["metier", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        code = ended.value.code
        return code if isinstance(code, int) else 0, out, err

    return call


def test_plan_says_what_and_why(metier: Metier):
    code, out, _ = metier("plan", "recipe.yaml")
    assert code == 0
    assert "3 of 3 steps will run." in out
    assert not Path(".metier").exists()
    metier("run", "recipe.yaml")
    assert "Nothing to do" in metier("plan", "recipe.yaml")[1]
    _, out, _ = metier("plan", "recipe.yaml", "--set", "taught.learning_rate=5e-5")
    row = next(line for line in out.splitlines() if line.startswith("taught"))
    assert "will run" in row
    assert row.endswith("learning_rate 2e-5 -> 5e-5")
    assert "2 of 3 steps will run; 2 of them took" in out
    assert "3 of 3" not in out
    assert "asked" not in metier("plan", "recipe.yaml", "--only", "taught")[1]


def test_plan_shows_the_resolved_recipe(metier: Metier):
    _, out, _ = metier("plan", "recipe.yaml", "--resolved", "--set", "taught.epochs=3")
    assert "epochs: 3" in out
    assert "shuffle: true" in out


def test_run_ends_by_naming_the_report(metier: Metier):
    code, out, _ = metier("run", "recipe.yaml")
    assert code == 0
    assert out.splitlines()[-1] == f"Report: {Path('runs/demo/report.html')}"
    assert Path("runs/demo/report.html").exists()
    assert "[taught] started (teach; new)" in out
    assert "[taught] done in" in out
    assert "loss 0.5" in out
    _, out, _ = metier("run", "recipe.yaml")
    assert "demo: 0 of 3 steps to run" in out
    assert "[taught] made already: loss 0.5" in out


def test_run_quietly(metier: Metier):
    assert metier("run", "recipe.yaml", "--quiet", "--out", "results")[1].strip() == "results/demo/report.html"
    code, out, err = metier("run", "recipe.yaml", "-q", "--set", "taught.broken=loss")
    assert (code, out) == (1, "")
    assert "taught: the loss is not finite" in err


def test_run_in_json(metier: Metier):
    _, out, _ = metier("run", "recipe.yaml", "--json")
    events = [json.loads(line) for line in out.splitlines()]
    assert events[0]["event"] == "run_started"
    assert events[-1] == {"event": "published", "report": "runs/demo/report.html"}
    assert {e["step"] for e in events if e["event"] == "finished"} == {"articles", "taught", "asked"}
    assert metier("run", "recipe.yaml", "--json", "--quiet")[0] == 2


def test_run_tracked(metier: Metier):
    code, out, _ = metier("run", "recipe.yaml", "--track", "tensorboard")
    assert code == 0
    assert out.splitlines()[-2:] == [
        f"Tracked: tensorboard --logdir {Path('runs/demo/tensorboard')}",
        f"Report: {Path('runs/demo/report.html')}",
    ]
    assert {path.name for path in Path("runs/demo/tensorboard").iterdir()} == {"articles", "taught", "asked"}
    assert "Tracked" not in metier("run", "recipe.yaml", "--track", "tensorboard")[1]  # nothing ran


def test_run_tracked_in_json_prints_json_alone(metier: Metier):
    code, out, _ = metier("run", "recipe.yaml", "--json", "--track", "wandb", "--track", "tensorboard")
    assert code == 0
    assert [json.loads(line)["event"] for line in out.splitlines()][-1] == "published"
    assert len(list(Path("runs/demo/wandb").glob("offline-run-*"))) == 3


def test_an_unknown_or_missing_tracker_ends_with_2_and_writes_nothing(metier: Metier, monkeypatch: pytest.MonkeyPatch):
    before = sorted(Path.cwd().rglob("*"))
    code, out, err = metier("run", "recipe.yaml", "--track", "tensorbord")
    assert (code, out) == (2, "")
    assert "--track: there is no such tracker" in err
    assert "did you mean 'tensorboard'?" in err
    monkeypatch.setitem(sys.modules, "wandb", None)
    code, out, err = metier("run", "recipe.yaml", "--track", "wandb")
    assert (code, out) == (2, "")
    assert "cure:  pip install 'metier[track]'" in err
    assert sorted(Path.cwd().rglob("*")) == before


def test_run_only_a_part_publishes_nothing(metier: Metier):
    code, out, _ = metier("run", "recipe.yaml", "--only", "articles")
    assert code == 0
    assert "Report" not in out
    assert not Path("runs").exists()


@pytest.mark.parametrize("command", ["plan", "run", "status", "check", "report"])
def test_a_bad_recipe_ends_with_2_and_writes_nothing(metier: Metier, command: str):
    before = sorted(Path.cwd().rglob("*"))
    code, out, err = metier(command, "recipe.yaml", "--set", "taught.learning_rte=1")
    assert (code, out) == (2, "")
    assert err.startswith("error: --set taught.learning_rte: taught.learning_rte: unknown key\n")
    assert "did you mean 'learning_rate'?" in err
    assert "Traceback" not in err
    assert sorted(Path.cwd().rglob("*")) == before


@pytest.mark.parametrize("command", ["run", "check"])
def test_bad_data_ends_with_2_and_writes_nothing(metier: Metier, command: str):
    Path("a.txt").write_text("")
    before = sorted(Path.cwd().rglob("*"))
    code, _, err = metier(command, "recipe.yaml")
    assert code == 2
    assert "recipe.yaml:3: articles:" in err
    assert "a.txt: the file is empty" in err
    assert sorted(Path.cwd().rglob("*")) == before


def test_check_says_what_it_looked_at(metier: Metier):
    code, out, _ = metier("check", "recipe.yaml")
    assert code == 0
    assert "1 file (1 line, 6 bytes)" in out
    assert "model base, articles" in out
    assert "recipe.yaml: 3 steps, nothing wrong." in out
    assert not Path(".metier").exists()


def test_status(metier: Metier):
    assert metier("status", "recipe.yaml")[1].count("not made") == 3
    metier("run", "recipe.yaml")
    assert metier("status", "recipe.yaml")[1].count("up to date") == 3
    _, out, _ = metier("status", "recipe.yaml", "--set", "taught.epochs=2")
    assert out.count("out of date") == 2
    assert "loss 0.5" in out


def test_report_again(metier: Metier):
    code, _, err = metier("report", "recipe.yaml")
    assert code == 2
    assert "not every step is made: articles, taught, asked" in err
    metier("run", "recipe.yaml")
    Path("runs/demo/report.html").unlink()
    assert metier("report", "recipe.yaml")[0] == 0
    assert Path("runs/demo/report.html").exists()


def test_the_store_is_where_it_is_said_to_be(metier: Metier, monkeypatch: pytest.MonkeyPatch):
    metier("run", "recipe.yaml", "--store", "one")
    assert Path("one/objects").is_dir()
    monkeypatch.setenv("METIER_STORE", "two")
    metier("run", "recipe.yaml")
    assert Path("two/objects").is_dir()
    assert not Path(".metier").exists()


def test_a_store_that_cannot_be_written(metier: Metier):
    Path("file").write_text("")
    code, _, err = metier("run", "recipe.yaml", "--store", "file")
    assert code == 1
    assert "cannot write the store" in err


def test_schema_and_version(metier: Metier):
    assert json.loads(metier("schema")[1])["title"] == "Metier recipe"
    assert metier("version")[1].strip() == __version__


def test_wrong_usage(metier: Metier):
    assert metier("pln", "recipe.yaml")[0] == 2
    assert metier("run")[0] == 2
    code, _, err = metier("plan", "absent.yaml")
    assert code == 2
    assert "absent.yaml: the file cannot be read" in err
