"""The published folder and its page: sections, escaping, self-containment, degrading, determinism."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import fake_run as fakes
import pytest

from metier.core.errors import StoreError
from metier.evaluate.choose import Choose
from metier.report import publish
from metier.report.collect import Contender, collect
from metier.report.leaderboard import Board, Place, cliques, final_model, rank
from metier.report.samples import MOST_CHANGED, choose, mark

SECTIONS = [
    "headline", "leaderboard", "better", "forgotten", "answers", "seen", "plots", "done", "training", "speed", "data",
    "lineage", "limits",
]  # fmt: skip
WITHOUT_PLOTS = [name for name in SECTIONS if name not in ("plots", "seen")]


class Page(HTMLParser):
    """What a browser would see: tags with attributes, and the text of each section."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self._inside: str | None = None
        self._style = False
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._style = tag == "style"
        if tag == "section":
            self._inside = dict(attrs)["id"]
            self.sections[self._inside] = ""

    def handle_endtag(self, tag):
        self._style = False
        if tag == "section":
            self._inside = None

    def handle_data(self, data):
        if self._inside and not self._style:
            self.sections[self._inside] += " " + data

    def words(self, section: str) -> str:
        return " ".join(self.sections[section].split())


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return fakes.full_run(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def out(result, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "quickstart"
    publish(result, "quickstart", folder, description="Reads & learns.")
    return folder


@pytest.fixture(scope="module")
def page(out):
    return Page(out / "report.html")


# --- the page ---------------------------------------------------------------------------------------------------------


def test_every_section_has_content(page):
    assert list(page.sections) == SECTIONS
    for name in SECTIONS:
        assert len(page.words(name)) > 150, name


def test_the_headline_says_it_in_words_with_numbers(page):
    words = page.words("headline")
    assert re.search(r"On 300 test questions, specialist reaches a token F1 of 0\.\d\d \[0\.\d\d, 0\.\d\d\]", words)
    assert "the base, seedling, 0." in words
    assert "▲ better" in words
    assert "Against the comparison run pairs-only, on the 150 “corpus-only” questions" in words
    assert re.search(r"held-out general text \(general\), specialist needs 0\.845 .* ▼ worse", words)


def test_sections_show_what_they_are_for(page):
    assert "4.62 M" in page.words("done")
    assert "learning_rate 0.001" in page.words("done")
    assert "batch_size" not in page.words("done")  # a default
    assert "batch_size" not in page.words("better")
    assert "Knowledge from the corpus" in page.words("better")
    assert "no evidence of a difference" in page.words("forgotten")
    assert "articles: domain text" in page.words("forgotten")
    assert "general: general text" in page.words("forgotten")
    assert "lowest 0.718 at step 600" in page.words("training")
    assert "Drawn at random" in page.words("answers")
    assert re.search(
        r"Of 300 questions answered by both, specialist scores higher than seedling on", page.words("answers")
    )
    assert "✓ right" in page.words("answers")
    assert "41 ms" in page.words("leaderboard")
    assert "1.21 GiB" in page.words("speed")
    assert "4: shorter than min_chars (4)" in page.words("data")
    assert "3 rows are truncated (×2)" in page.words("data")
    assert "max_new_tokens: 32" in page.words("lineage")
    assert "2.13.0" in page.words("lineage")
    assert "One seed" in page.words("limits")


def test_it_asks_the_network_for_nothing(page):
    policy = next(a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv"))
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert "unsafe" not in policy
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", page.source, re.DOTALL)
        assert directives[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"
    for tag, attributes in page.tags:
        assert "style" not in attributes, tag
        assert tag not in ("link", "iframe", "object", "embed", "img", "base", "form", "image", "use")
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in ("src", "srcset", "action", "background", "xlink:href")
            if name == "href":
                assert str(value).startswith("#")
    assert "://" not in page.source
    assert "@import" not in page.source
    assert "url(" not in page.source


def test_the_page_has_no_broken_numbers(page):
    assert not re.search(r"\b(nan|NaN|inf|None|Undefined)\b", " ".join(page.sections.values()))
    shapes = [a for t, a in page.tags if t in ("line", "polyline", "path", "rect", "circle", "svg")]
    assert not [a for a in shapes if re.search("nan|inf", " ".join(str(v) for v in a.values()))]


def test_strings_of_others_stay_strings(page):
    assert "<script>alert" in page.words("answers")  # as text
    assert "<script>alert" in page.words("data")  # a warning
    assert "‹U+0000›" in page.words("answers")
    assert "‹U+202E›gnirts‹U+202C›" in page.words("answers")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", page.source)


def test_hostile_names_and_settings_stay_strings_too(tmp_path):
    run = fakes.FakeRun(tmp_path / "store")
    evil = '"><script>x</script>\u202e'
    files = fakes.model_files("full", steps=2)
    run.add(
        evil.replace("/", "|"),
        {"kind": "pretrain", "model": evil, "documents": evil},
        "model",
        files=files,
        inputs={evil: "model"},
    )
    shown = Page(publish(run.result, evil, tmp_path / "out", description=evil))
    assert [tag for tag, _ in shown.tags].count("script") == 1  # the page's own
    assert "\u202e" not in shown.source


def test_equal_input_gives_equal_bytes(result, out, tmp_path):
    publish(result, "quickstart", tmp_path, description="Reads & learns.")
    for name in ("report.html", "leaderboards_full.json"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


def test_it_stays_small(out):
    assert (out / "report.html").stat().st_size < 400_000


# --- with little to show ----------------------------------------------------------------------------------------------


def test_training_alone(tmp_path):
    shown = Page(publish(fakes.training_only(tmp_path / "store"), "t", tmp_path / "out"))
    assert list(shown.sections) == WITHOUT_PLOTS
    assert "Nothing was scored" in shown.words("headline")
    assert "reader: loss" in shown.words("headline")
    assert "not measured" in shown.words("forgotten")
    board = json.loads((tmp_path / "out" / "leaderboards_full.json").read_text())
    assert board["contenders"] == []
    assert board["ranked_by"] is None
    assert board["model"] == "reader"
    assert (tmp_path / "out" / "model" / "model.safetensors").exists()


def test_one_contender(tmp_path):
    shown = Page(publish(fakes.one_contender(tmp_path / "store"), "t", tmp_path / "out"))
    assert "compared with nothing" in shown.words("headline")
    assert "(empty)" in shown.words("answers")
    assert not (tmp_path / "out" / "model").exists()


def test_likelihood_alone(result, tmp_path):
    few = {name: result[name] for name in ("articles", "general", "reader", "likelihood")}
    shown = Page(publish(few, "t", tmp_path))
    assert "bits per byte" in shown.words("headline")
    assert "No answers were scored" in shown.words("better")


def test_no_step_at_all(tmp_path):
    assert list(Page(publish({}, "t", tmp_path)).sections) == WITHOUT_PLOTS


# --- leaderboard ------------------------------------------------------------------------------------------------------


def test_the_leaderboard_file(out):
    board = json.loads((out / "leaderboards_full.json").read_text(encoding="utf-8"))
    assert board["format"] == 1
    assert board["recipe"] == "quickstart"
    assert board["model"] == "specialist"
    assert board["ranked_by"]["metric"] == "token_f1"
    assert board["ranked_by"]["higher_is_better"] is True
    assert [c["name"] for c in board["contenders"]] == ["specialist", "pairs-only", "reader", "seedling"]
    assert [c["rank"] for c in board["contenders"]] == [1, 2, 3, 4]
    assert [c["role"] for c in board["contenders"]] == ["specialist", "comparison", "stage", "base"]
    first = board["contenders"][0]
    assert first["parameters"] == 4_623_360
    assert first["measured"]["p95_seconds"] == 0.12
    places = {(s["step"], s["metric"], s["group"]) for s in first["scores"]}
    assert ("scores", "token_f1", "corpus-only") in places
    assert ("likelihood", "bits_per_byte", "general") in places
    score = first["scores"][0]
    assert {"n", "mean", "low", "high", "higher_is_better", "method", "versus", "confidence"} <= score.keys()
    assert {"against", "difference", "low", "high", "p", "p_holm", "verdict", "detectable"} <= score["versus"][0].keys()


def test_the_model_is_the_last_contender_not_the_last_merge(result):
    run = collect(result, "quickstart")
    assert [s.name for s in run.steps if s.kind == "merge"][-1] == "pairs-only"
    assert final_model(run) is run.step("specialist")


def test_ties_are_said(tmp_path):
    run = fakes.FakeRun(tmp_path)
    values = {"a": 0.5, "b": 0.52, "c": 0.52, "d": 0.9}
    rows = [
        fakes.score_row(n, "token_f1", "all", 100, mean, (0.5, 0.5, 0.5), higher=True) | {"versus": []}
        for n, mean in values.items()
    ]
    scores = {"baseline": "a", "confidence": 0.95, "rows": rows}
    run.add("s", {"kind": "score", "answers": "x"}, "scores", files={"scores.json": scores, "items.jsonl": []})
    places = {p.contender.name: p for p in rank(collect(run.result, "t")).places}
    assert {n: p.rank for n, p in places.items()} == {"d": 1, "b": 2, "c": 2, "a": 4}
    assert places["b"].tied_with == ("a", "c")
    assert places["d"].tied_with == ()
    shown = Page(publish(run.result, "t", tmp_path / "out"))
    assert "tied:" in shown.words("leaderboard").lower()
    assert "all tied with one another: b, c, a." in shown.words("leaderboard")
    assert sum(a.get("class") == "lane" for _, a in shown.tags) == 3


def test_lower_is_better_ranks_the_other_way(result, tmp_path):
    few = {name: result[name] for name in ("articles", "general", "likelihood")}
    board = rank(collect(few, "t"))
    assert board.group == "articles"
    assert [p.contender.name for p in board.places] == ["reader", "specialist", "pairs-only", "seedling"]


# --- samples ----------------------------------------------------------------------------------------------------------


def test_the_answers_that_changed_most_come_first_in_either_direction(result):
    run = collect(result, "quickstart")
    samples = choose(run, rank(run))
    assert (samples.base, samples.specialist) == ("seedling", "specialist")
    assert samples.gained + samples.lost + samples.same == 300
    parts = {heading: [s.why for s in shown] for heading, _, shown in samples.parts}
    assert list(parts) == ["Gained most", "Lost most", "Drawn at random"]
    for heading, sign in (("Gained most", 1), ("Lost most", -1)):
        changes = [float(why.split()[0].replace("−", "-")) for why in parts[heading]]
        assert len(changes) == MOST_CHANGED
        assert changes == sorted(changes, reverse=sign > 0)
        assert all(change * sign > 0 for change in changes)
    assert parts["Drawn at random"] == ["corpus-only"] * 2 + ["reworded"] * 2
    assert [s.contender for s in samples.shown[0].said] == ["seedling", "pairs-only", "specialist"]
    assert samples.shown[0].reference


@pytest.mark.parametrize(
    ("value", "exact", "word"),
    [(1.0, None, "right"), (0.4, 1.0, "right"), (0.5, 0.0, "partly"), (0.1, 0.0, "wrong"), (None, None, "")],
)
def test_marks(value, exact, word):
    assert mark(value, exact) == word


# --- the folder -------------------------------------------------------------------------------------------------------


def test_models_and_adapters_are_published(result, out):
    assert (out / "model" / "model.safetensors").read_bytes() == b"specialist"
    assert sorted(p.name for p in (out / "adapters").iterdir()) == ["pairs-adapter", "specialist-adapter"]
    link = json.loads((out / "adapters" / "specialist-adapter" / "base.json").read_text())["base"]
    assert (out / "adapters" / "specialist-adapter" / link).resolve() == result["reader"][1].files.resolve()
    assert json.loads((out / "adapters" / "pairs-adapter" / "base.json").read_text()) == {"base": "seedling"}
    assert not [p for p in out.iterdir() if p.name.startswith(".")]


def test_publishing_again_leaves_unchanged_models_alone(result, tmp_path):
    publish(result, "quickstart", tmp_path)
    before = (tmp_path / "model" / "model.safetensors").stat().st_ino
    adapter = (tmp_path / "adapters" / "pairs-adapter" / "base.json").stat().st_ino
    publish(result, "quickstart", tmp_path)
    assert (tmp_path / "model" / "model.safetensors").stat().st_ino == before
    assert (tmp_path / "adapters" / "pairs-adapter" / "base.json").stat().st_ino == adapter


def test_a_changed_run_replaces_models_and_drops_old_adapters(result, tmp_path):
    publish(result, "quickstart", tmp_path)
    fewer = {name: result[name] for name in ("articles", "reader")}
    publish(fewer, "quickstart", tmp_path)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == b"weights"
    assert not (tmp_path / "adapters").exists()


def test_damaged_artifacts_leave_the_earlier_report(result, tmp_path):
    publish(result, "quickstart", tmp_path / "out")
    before = (tmp_path / "out" / "report.html").read_bytes()
    run = fakes.FakeRun(tmp_path / "store")
    run.add("s", {"kind": "score", "answers": "x"}, "scores", files={"scores.json": '{"rows": [NaN]}'})
    with pytest.raises(StoreError, match="NaN is no number") as caught:
        publish(run.result, "quickstart", tmp_path / "out")
    assert "scores.json" in str(caught.value.where)
    assert (tmp_path / "out" / "report.html").read_bytes() == before


def test_folders_and_hub_ids_are_shown_by_their_last_part(tmp_path):
    run = fakes.FakeRun(tmp_path / "store")
    names = ["/a/long/way/to/tiny", "org/tiny", "org/other"]
    rows = [fakes.score_row(n, "token_f1", "all", 9, 0.5, (0.5,) * 3, higher=True) | {"versus": []} for n in names]
    scores = {"baseline": names[0], "confidence": 0.95, "rows": rows}
    run.add("s", {"kind": "score", "answers": "x"}, "scores", files={"scores.json": scores, "items.jsonl": []})
    collected = collect(run.result, "t")
    assert [collected.label(n) for n in names] == [*names[:2], "other"]
    board = json.loads((publish(run.result, "t", tmp_path / "out").parent / "leaderboards_full.json").read_text())
    assert {c["name"] for c in board["contenders"]} == set(names)


# --- gain and damage --------------------------------------------------------------------------------------------------


def test_ten_seconds_say_better_or_not_at_what_cost_and_how_sure(page):
    words = page.words("headline")
    assert re.search(r"Is it better\? ▲ better token F1 0\.\d\d → 0\.\d\d \(Test questions, all, n = 300\)", words)
    assert "At what cost? ▼ worse General text (general): bits per byte 0.810 → 0.845 (+4 %)" in words
    assert re.search(r"How sure\? Difference \+0\.\d\d, interval \[.*, p < 0.001 corrected", words)
    assert words.index("Gain in its trade") < words.index("corpus-only") < words.index("Cost in text and questions")
    assert "Refusals" not in words


def with_scores(tmp_path, rows, **more):
    run = fakes.FakeRun(tmp_path)
    fakes.add_data(run)
    fakes.add_models(run)
    scores = {"baseline": "seedling", "confidence": 0.95, "rows": rows, **more}
    run.add("scores", {"kind": "score", "answers": "x"}, "scores", files={"scores.json": scores, "items.jsonl": []})
    return run


def two(metric, group, base, specialist, *, higher=True):
    means = (base, base, base, specialist)
    pairs = (("seedling", base), ("specialist", specialist))
    return [fakes.score_row(n, metric, group, 80, m, means, higher=higher) for n, m in pairs]


def test_refusals_appear_only_where_they_were_measured(tmp_path):
    rows = [
        *two("token_f1", "all", 0.2, 0.6),
        *two("refused", "unsafe", 0.9, 0.5),
        *two("token_f1", "benign", 0.4, 0.4),
    ]
    words = Page(publish(with_scores(tmp_path, rows).result, "t", tmp_path / "out")).words("headline")
    refusals = words[words.index("Refusals of what is unsafe") :]
    assert "unsafe refused, higher is better" in refusals
    assert "benign token F1" in refusals
    assert "At what cost? ▼ worse unsafe: refused 0.900 → 0.500" in words


def test_what_was_not_measured_is_said(tmp_path):
    words = Page(publish(with_scores(tmp_path, two("token_f1", "all", 0.2, 0.6)).result, "t", tmp_path / "o")).words(
        "headline"
    )
    assert "At what cost? ◆ not measured" in words


def test_points_of_reference_stand_apart_and_take_no_rank(tmp_path):
    rows = two("token_f1", "all", 0.2, 0.6)
    rows += [
        fakes.score_row(n, "token_f1", "all", 80, m, (0.2,) * 4, higher=True)
        for n, m in (("nearest", 0.9), ("one human", 0.95))
    ]
    kinds = {"seedling": "model", "specialist": "model", "nearest": "trivial", "one human": "human"}
    run = with_scores(tmp_path, rows, contenders=kinds)
    board = rank(collect(run.result, "t"))
    assert [(p.contender.name, p.rank, p.role) for p in board.places] == [
        ("specialist", 1, "specialist"), ("seedling", 2, "base"),
        ("one human", None, "reference"), ("nearest", None, "reference"),
    ]  # fmt: skip
    words = Page(publish(run.result, "t", tmp_path / "out")).words("leaderboard")
    assert words.index("seedling") < words.index("Points of reference") < words.index("one human")
    table = json.loads((tmp_path / "out" / "leaderboards_full.json").read_text())
    assert [c["kind"] for c in table["contenders"]] == ["model", "model", "human", "trivial"]


def test_a_model_that_is_no_better_than_no_model_is_said_to_be(tmp_path):
    kinds = {"seedling": "model", "specialist": "model", "always yes": "trivial"}
    for mean, near in ((0.58, True), (0.01, False)):
        rows = two("accuracy", "all", 0.5, 0.6)
        rows.append(fakes.score_row("always yes", "accuracy", "all", 80, mean, (0.2,) * 4, higher=True))
        folder = tmp_path / str(mean)
        page = Page(publish(with_scores(folder, rows, contenders=kinds).result, "t", folder / "out"))
        words = page.words("headline")
        assert ("is not clearly past the trivial baseline “always yes”" in words) is near
        assert words.count("not clearly past") == (3 if near else 0)  # each model, and the first tile


def test_ties_are_the_largest_sets_that_are_tied_with_one_another():
    def place(name, *tied):
        return Place(Contender(name, name, None, {}), "stage", 1, None, tied)

    board = Board(
        None,
        None,
        "all",
        True,
        (place("a", "b"), place("b", "a", "c"), place("c", "b", "d"), place("d", "c"), place("e")),
    )
    assert cliques(board) == [["a", "b"], ["b", "c"], ["c", "d"]]


# --- contamination ----------------------------------------------------------------------------------------------------


def asked(tmp_path, exposure, rows=(), **contenders):
    run = fakes.FakeRun(tmp_path / "store")
    names = list(contenders)
    files = {
        "questions.jsonl": [{"id": "a", "group": "", "messages": [{"role": "user", "content": "Q"}], "reference": "R"}],
        "contenders.json": json.dumps([{"name": n, "model": n, "kind": k} for n, k in contenders.items()]),
        **{f"answers/{n}.jsonl": [{"id": "a", "text": "R", "tokens": 1, "stopped": True}] for n in names},
        **({"contamination.json": exposure} if exposure is not None else {}),
    }
    run.add("answers", {"kind": "answer", "models": names, "questions": "q"}, "answers", files=files)
    scores = {"baseline": names[0], "confidence": 0.95, "rows": list(rows)}
    stage = {"kind": "score", "answers": "answers", "metrics": ["token_f1"]}
    run.add("scores", stage, "scores", files={"items.jsonl": [], "scores.json": scores}, inputs={"answers": "answers"})
    return Page(publish(run.result, "t", tmp_path / "out"))


def test_what_was_seen_in_training_is_shown_with_both_scores(tmp_path):
    exposure = {
        "gate": {"action": "report", "exact": True, "ngram": 13},
        "tested": 50,
        "seen": 4,
        "dropped": [],
        "contenders": {
            "base": {"unknown": ["base"], "seen": []},
            "tuned": {"unknown": [], "seen": ["a", "b", "c", "d"]},
        },
        "hits": [{"id": "a", "how": "exact", "score": 1.0, "tested": "<b>Q", "trained": "Q\u202e" + "x" * 100_000}],
    }
    rows = [
        fakes.score_row(n, "token_f1", g, k, m, (0.2,) * 4, higher=True)
        for n, m in (("base", 0.2), ("tuned", 0.7))
        for g, k in (("all", 50), ("clean", 46))
    ]
    shown = asked(tmp_path, exposure, rows, base="model", tuned="model")
    words = shown.words("seen")
    assert "4 of 50 questions were found" in words
    assert "tuned 4 none" in words
    assert "base 0 base" in words
    assert "all (n = 50)" in words
    assert "clean (n = 46)" in words
    assert "<b>Q" in words
    assert "‹U+202E›" in words
    assert len(words) < 4000


def test_it_says_where_nobody_looked(tmp_path):
    assert "Nobody looked" in asked(tmp_path, None, base="model").words("seen")


def test_endpoints_are_models_and_say_so(tmp_path):
    rows = [
        fakes.score_row(n, "token_f1", "all", 9, m, (0.2,) * 4, higher=True) for n, m in (("base", 0.2), ("far", 0.7))
    ]
    words = asked(tmp_path, None, rows, base="model", far="endpoint").words("leaderboard")
    assert words.index(" far ") < words.index(" base ", words.index(" far "))
    assert ", endpoint" in words


def test_settings_that_a_stage_refuses_when_spelt_out_are_shown_as_they_are(tmp_path):
    run = fakes.FakeRun(tmp_path / "store")
    stage = Choose(models=["seedling"], task="health", shots=2).model_dump(mode="json")
    files = {"questions.jsonl": [], "contenders.json": "[]"}
    run.add("choices", stage, "choices", files=files)
    words = Page(publish(run.result, "t", tmp_path / "out")).words("done")
    assert "task health" in words
    assert "shots 2" in words
    assert "split" not in words


def test_what_was_chosen_stands_among_the_answers_that_changed(tmp_path):
    run = fakes.FakeRun(tmp_path / "store")
    questions = [
        {"id": f"q{i}", "group": "", "messages": [{"role": "user", "content": "Q"}], "reference": "yes"}
        for i in range(3)
    ]
    names = ("base", "tuned")
    contenders = json.dumps([{"name": n, "model": n, "kind": "model"} for n in names])
    stage = {"kind": "choose", "models": list(names), "task": "health"}
    run.add("choices", stage, "choices", files={"questions.jsonl": questions, "contenders.json": contenders})
    items = [
        {
            "id": f"q{i}",
            "contender": n,
            "group": "",
            "accuracy": float(n == "tuned"),
            "said": "yes" if n == "tuned" else "no",
        }
        for n in names
        for i in range(3)
    ]
    rows = [
        fakes.score_row(n, "accuracy", "all", 3, m, (0.2,) * 4, higher=True) for n, m in (("base", 0), ("tuned", 1))
    ]
    scores = {"baseline": "base", "confidence": 0.95, "rows": rows}
    made = {"items.jsonl": items, "scores.json": scores}
    run.add("scores", {"kind": "score", "answers": "choices"}, "scores", files=made, inputs={"choices": "answers"})
    words = Page(publish(run.result, "t", tmp_path / "out")).words("answers")
    assert "tuned scores higher than base on 3" in words
    assert "base ✗ wrong 0.00 no tuned ✓ right 1.00 yes" in words
