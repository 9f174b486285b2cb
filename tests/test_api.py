"""`metier.init`, `metier.run` and `metier.model`: what a notebook uses, on a tiny model and a recipe of seconds."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import metier
from fakes import byte_tokenizer, tiny_llama
from metier.core.errors import InputError, MetierError, ModelError
from metier.models.save import save_model

RECIPE = """\
name: short
steps:
  asked: {kind: examples, sources: [{path: qa.jsonl}], test: [{path: test.jsonl}]}
  adapter: {kind: tune, model: base, examples: asked, max_steps: 1, method: {lora: {r: 2, alpha: 4}}}
  specialist: {kind: merge, model: adapter}
  answers: {kind: answer, models: [base, specialist], questions: asked, max_new_tokens: 4}
  scores: {kind: score, answers: answers, metrics: [token_f1, exact_match]}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("api")
    save_model(tiny_llama(), byte_tokenizer(), root / "base")
    rows = [{"question": f"What is {n}?", "answer": f"The number {n}."} for n in range(12)]
    (root / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:8]))
    (root / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[8:]))
    (root / "short.yaml").write_text(RECIPE)
    return root


@pytest.fixture(scope="module")
def ran(place: Path) -> "metier.Run":
    return metier.run(place / "short.yaml", store=place / "store", out=place / "runs", quiet=True)


def test_the_report_is_a_path_and_shows_inline_without_reaching_out(ran: "metier.Run"):
    report = ran.report()
    page = Path(report).read_text(encoding="utf-8")
    assert str(report) == str(ran.folder / "report.html")
    shown = report._repr_html_()
    assert shown.startswith("<iframe")
    assert 'sandbox="allow-scripts"' in shown
    assert shown.count('"') < 12  # the page's own are escaped
    assert len(shown) > len(page)
    assert "5 steps" in ran._repr_html_()
    assert len(repr(ran)) < 1000  # a notebook shows it where it cannot show HTML


def test_the_scores_are_those_of_the_leaderboard(ran: "metier.Run"):
    rows = ran.scores(metric="token_f1", group="all")
    assert {"base", "specialist"} <= {row["contender"] for row in rows}
    assert all(row["n"] == 4 and row["low"] <= row["mean"] <= row["high"] for row in rows)
    assert len(ran.scores()) > len(rows)
    assert rows._repr_html_().count("<tr>") == len(rows) + 1
    with pytest.raises(InputError, match="token_f1"):
        ran.scores(metric="token_f2")


def test_a_step_answers_and_remembers(ran: "metier.Run"):
    model = ran.model("specialist")
    assert model.ask("Hello?", max_new_tokens=4) == model.ask("Hello?", max_new_tokens=4)
    first = model.chat("Hello?", max_new_tokens=4)
    assert first == model.ask("Hello?", max_new_tokens=4)
    assert "".join(model.stream("And now?", max_new_tokens=4))
    assert [turn.content for turn in model._opened().turns][::2] == ["Hello?", "And now?"]
    model.ask("By itself?", max_new_tokens=2)
    assert len(model._opened().turns) == 4
    model.forget()
    assert model._opened().turns == []


def test_a_model_of_the_store_is_found_by_name(ran: "metier.Run", place: Path):
    found = metier.model("short/specialist", store=place / "store")
    assert found.folder == ran.model("specialist").folder
    assert found.ask("Hello?", max_new_tokens=3) == ran.model("specialist").ask("Hello?", max_new_tokens=3)


def test_what_is_wrong_is_said_with_its_cure(ran: "metier.Run", place: Path):
    with pytest.raises(ModelError, match="that step made no model"):
        ran.model("answers")
    with pytest.raises(InputError, match="did you mean 'specialist'"):
        ran.model("specialst")
    for wrong in ({"temperature": -1.0}, {"max_new_tokens": 0}, {"top_p": 0.0}, {"stop": "."}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            ran.model("specialist").ask("Hello?", **wrong)
    with pytest.raises(InputError, match="overrides are a list"):
        metier.run(place / "short.yaml", "adapter.epochs=1")
    with pytest.raises(MetierError, match="nowhere"):
        metier.model("nowhere", store=place / "store")


def test_a_variant_and_a_smoke_run_are_what_the_command_makes_of_them(place: Path):
    variants = (
        "variants: {short-scores: {steps: {scores: {metrics: [rouge_l]}}}}\nsmoke: {steps: {answers: {limit: 2}}}\n"
    )
    (place / "varied.yaml").write_text(RECIPE.replace("name: short", "name: varied") + variants)
    options = {"store": place / "store", "out": place / "runs", "quiet": True}
    varied = metier.run(place / "varied.yaml", variant="short-scores", **options)
    assert {row["metric"] for row in varied.scores()} == {"rouge_l"}
    small = metier.run(place / "varied.yaml", smoke=True, **options)
    assert small.name == "varied-smoke"
    assert {row["n"] for row in small.scores(group="all")} == {2}
    with pytest.raises(InputError, match="no such variant"):
        metier.run(place / "varied.yaml", variant="best", **options)


def test_a_second_run_keeps_all_also_beside_the_main_thread(ran: "metier.Run", place: Path):
    again: list[metier.Run] = []

    def work() -> None:
        again.append(metier.run(place / "short.yaml", store=place / "store", out=place / "runs", quiet=True))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert {step.state for step in again[0].result.planned} == {"cached"}
    assert again[0].artifact("specialist").files == ran.artifact("specialist").files


def test_init_writes_a_recipe(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recipe = metier.init(place / "qa.jsonl", tmp_path / "mine.yaml")
    assert "kind: examples" in recipe.read_text()
    with pytest.raises(InputError, match="a file already"):
        metier.init([place / "qa.jsonl"], recipe)


def test_importing_metier_and_its_api_imports_nothing_heavy():
    code = (
        "import sys, metier; bare = set(sys.modules); metier.run; "
        "print('metier.api' in bare, sorted({'torch', 'numpy', 'transformers', 'typer'} & sys.modules.keys()), "
        "'run' in dir(metier))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["False", "[]", "True"]
    with pytest.raises(AttributeError, match="rum"):
        metier.rum  # noqa: B018
