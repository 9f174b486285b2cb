"""`metier compare`: who is meant, what is paired, what it refuses, and that nothing reaches the terminal as it is."""

import csv
import html
import io
import json
import re

import fake_run as fakes
import pytest
from typer.testing import CliRunner

from metier.cli import app
from metier.cli.compare import line
from metier.core.errors import InputError
from metier.core.store import Store
from metier.report.compare import as_csv, as_json, as_page, compare, find

N = 60
EVIL = "ev\x1b[31mil\u202e<script>" + "x" * 50  # no NUL: a contender is a file too


def scored(root, recipe, contenders, *, n=N, references="R", first=0, metrics=("token_f1", "exact_match")):
    """A run in the store: contenders with a share of right answers, to questions `first` to `n`."""
    run = fakes.FakeRun(root)
    ids = [f"q{i}" for i in range(first, first + n)]
    questions = [
        {"id": q, "group": "odd" if i % 2 else "even", "messages": [{"role": "user", "content": "Q"}],
         "reference": f"{references} {q}"}
        for i, q in enumerate(ids)
    ]  # fmt: skip
    items, rows = [], []
    for name, share in contenders.items():
        for i, q in enumerate(questions):
            right = float(i % 10 < share * 10)
            items.append({"id": q["id"], "contender": name, "group": q["group"], **dict.fromkeys(metrics, right)})
        for metric in (*metrics, "corpus_bleu"):
            rows.append(fakes.score_row(name, metric, "all", n, share, (0.2,) * 4, higher=True) | {"versus": []})
    stored = [{"name": name, "model": name} for name in contenders]
    run.add(
        "answers",
        {"kind": "answer", "models": list(contenders), "recipe": recipe},
        "answers",
        files={
            "questions.jsonl": questions,
            "contenders.json": json.dumps(stored),
            **{
                f"answers/{c['name'].replace('/', '--')}.jsonl": [
                    {"id": q, "text": f"<b>{recipe} {c['name']}</b> says {q}", "tokens": 3, "stopped": True}
                    for q in ids
                ]
                for c in stored
            },
        },
    )
    scores = {"baseline": next(iter(contenders)), "confidence": 0.95, "rows": rows}
    run.add(
        "scores",
        {"kind": "score", "answers": "answers", "metrics": list(metrics), "recipe": recipe},
        "scores",
        files={"items.jsonl": items, "scores.json": scores},
        inputs={"answers": "answers"},
    )
    for name, (_, artifact) in run.result.items():
        run.store.set_ref(recipe, name, artifact.key)


@pytest.fixture
def store(tmp_path):
    root = tmp_path / "store"
    scored(root, "old", {"base": 0.2, "tuned": 0.5})
    scored(root, "new", {"base": 0.2, "org/tuned": 0.9})
    return Store(root)


def test_two_runs_are_their_specialists_paired_item_by_item(store):
    found = compare(find("new", store), find("old", store))
    assert (found.a, found.b) == ("new/tuned", "old/tuned")
    first = found.rows[0]
    assert (first.metric, first.group, first.n, first.verdict) == ("token_f1", "all", N, "better")
    assert first.difference == pytest.approx(0.4)
    assert first.low < 0.4 < first.high
    assert [r.group for r in found.rows if r.metric == "token_f1"] == ["all", "even", "odd"]
    assert all(r.p_holm >= r.p for r in found.rows)
    assert any("corpus_bleu" in note for note in found.notes)


def test_the_answers_that_changed_most_are_shown_in_either_direction(store):
    found = compare(find("new", store), find("old", store))
    assert found.changed is not None
    assert (found.changed.metric, found.changed.gained, found.changed.lost, found.changed.same) == (
        "token_f1",
        24,
        0,
        36,
    )  # right on i % 10 < 9 against < 5
    first = found.changed.most_gained[0]
    assert (first.id, first.reference, first.why.split()[0]) == ("q15", "R q15", "+1.00")
    assert [(s.contender, s.mark, s.text) for s in first.said] == [
        ("new/tuned", "right", "<b>new org/tuned</b> says q15"),
        ("old/tuned", "wrong", "<b>old tuned</b> says q15"),
    ]
    assert found.changed.most_lost == ()
    page = as_page(found)
    assert "Better in new/tuned" in page
    assert "Better in old/tuned" not in page
    assert html.escape("<b>new org/tuned</b> says q15") in page
    assert as_json(found)["changed"]["gained"] == 24
    back = compare(find("old", store), find("new", store)).changed
    assert back is not None
    assert (back.gained, back.lost, back.most_lost[0].id) == (0, 24, "q15")


def test_the_other_way_round_it_is_worse(store):
    ways = [compare(find(a, store), find(b, store)).rows[0] for a, b in (("new", "old"), ("old", "new"))]
    assert [w.verdict for w in ways] == ["better", "worse"]
    assert ways[0].difference == -ways[1].difference


def test_contenders_steps_and_published_folders_can_be_named(store, tmp_path):
    folder = tmp_path / "runs" / "old"
    folder.mkdir(parents=True)
    (folder / "leaderboards_full.json").write_text("{}")
    assert find("old/base", store).contender == "base"
    assert find("new/org/tuned", store).contender == "org/tuned"
    assert find("new/tuned", store).contender == "org/tuned"
    assert find("old/scores", store).step == find("old/answers", store).step == "scores"
    assert find(str(folder), store).contender == "tuned"
    assert find(f"{folder}/base", store).contender == "base"


def test_what_only_one_side_was_asked_is_left_out_and_said(store, tmp_path):
    scored(store.root, "later", {"base": 0.9}, first=20)
    found = compare(find("later", store), find("old", store))
    assert found.rows[0].n == N - 20
    assert any("40 items in common; 40 that only one side" in note for note in found.notes)


def test_other_references_are_other_questions(store):
    scored(store.root, "changed", {"base": 0.9}, references="another")
    with pytest.raises(InputError, match="cannot be compared item by item"):
        compare(find("changed", store), find("old", store))


def test_a_side_is_not_compared_with_itself(store):
    with pytest.raises(InputError, match="both sides are the same"):
        compare(find("old", store), find("old/tuned", store))


@pytest.mark.parametrize(("text", "cure"), [("odl", "old"), ("old/bsae", "base"), ("old/scoers", "scores")])
def test_unknown_names_get_the_nearest(store, text, cure):
    with pytest.raises(InputError) as caught:
        find(text, store)
    assert cure in str(caught.value)


def test_an_empty_store_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match="no run of that name"):
        find("x", Store(tmp_path))


def test_the_page_the_json_and_the_csv_say_the_same(store):
    found = compare(find("new", store), find("old", store))
    page, rows = as_page(found), list(csv.DictReader(io.StringIO(as_csv(found))))
    assert "▲" in page
    assert "+0.40" in page
    assert page.count("<script") == 1
    assert "default-src 'none'" in html.unescape(page)
    assert float(rows[0]["difference"]) == pytest.approx(0.4)
    assert as_json(found)["rows"][0]["verdict"] == rows[0]["verdict"] == "better"
    json.dumps(as_json(found), allow_nan=False)


def test_the_command_prints_no_string_as_it_is(tmp_path):
    scored(tmp_path, "bad", {"base": 0.2, EVIL: 0.9})
    args = ["compare", "bad/base", "bad", "--store", str(tmp_path), "--html", str(tmp_path / "x" / "c.html")]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    assert "worse" in result.output
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", result.output)
    page = (tmp_path / "x" / "c.html").read_text()
    assert page.count("<script") == 1
    assert "\u202e" not in page


def test_a_line_for_the_terminal_is_one_short_line():
    assert line("a\nb\x1b[2J\u202e") == "a b‹U+001B›[2J‹U+202E›"
    assert len(line("x" * 100_000)) < 100
