"""What was tried stands on the page and in Markdown: sizes, conditions, what was kept; and where nothing is saved."""

from pathlib import Path
from typing import Any

import fake_run as fakes
import pytest

from metier.report.collect import Run, collect
from metier.report.leaderboard import rank
from metier.report.markdown import as_markdown
from metier.report.page import render
from metier.report.pruned import pruned


def size(parameters: int, zeros: int = 0) -> dict[str, int]:
    row = {"parameters": parameters, "zeros": zeros, "bytes": 2 * parameters, "cache_bytes": 6144}
    return row | {"layers": 6, "heads": 4, "groups": 2, "width": 704}


def condition(name: str, holds: bool, **more: Any) -> dict[str, Any]:
    row = {"name": name, "n": 60, "before": 0.71, "after": 0.62, "difference": -0.09, "bound": -0.13, "limit": -0.05}
    return row | {"higher": True, "method": "student", "holds": holds, "why": "" if holds else "not proved"} | more


def tried(title: str, ratio: float, holds: bool, parameters: int) -> dict[str, Any]:
    return {
        "title": title,
        "ratio": ratio,
        "removes": True,
        "predicted": {"parameters": parameters, "bytes": 2 * parameters, "cache_bytes": 6144},
        "size": size(parameters),
        "score": {"name": "token_f1", "mean": 0.62, "low": 0.55, "high": 0.69},
        "holds": holds,
        "why": "",
        "conditions": [
            condition("token_f1", holds),
            condition("general bits per byte", True, higher=False, bound=0.02, limit=0.06),
        ],
    }


ABOUT: dict[str, Any] = {
    "method": "width",
    "asked": "160 of 704 MLP channels removed",
    "heal": "reconstruct",
    "guarded": True,
    "verdict": "removed",
    "kept": "<b>96</b> of 704 MLP channels removed",
    "ratio": 0.136,
    "before": {"size": size(4_923_000), "score": {"name": "token_f1", "mean": 0.71, "low": 0.66, "high": 0.76}},
    "tries": [
        tried("160 of 704 MLP channels removed", 0.227, False, 4_186_000),
        tried("<b>96</b> of 704 MLP channels removed", 0.136, True, 4_481_000),
    ],
    "points": [
        {"ratio": r, "score": s, "low": s - 0.05, "high": s + 0.05, "size_bytes": 9_000_000}
        for r, s in ((0.0, 0.71), (0.227, 0.5))
    ],
}
BEFORE = {"before_prompt_seconds": 0.02, "before_token_seconds": 0.004}
MEASURED = {
    "tries": [
        BEFORE | {"after_prompt_seconds": 0.018, "after_token_seconds": 0.0035, "ratio": 1.143},
        BEFORE | {"after_prompt_seconds": 0.019, "after_token_seconds": 0.0037, "ratio": 1.081},
    ]
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = fakes.FakeRun(tmp_path / "store")
    fakes.add_data(made)
    fakes.add_models(made)
    files = fakes.model_files("merge", trained=False)
    add: dict[str, Any] = {"inputs": {"specialist": "model"}, "measured": {"about.json": MEASURED}}
    made.add("smaller", {"kind": "prune", "model": "specialist"}, "model", files=files | {"about.json": ABOUT}, **add)
    mask = ABOUT | {
        "asked": "2 of 4 heads zero in 4 blocks",
        "kept": "2 of 4 heads zero in 4 blocks",
        "verdict": "mask only, nothing saved: the files are what they were",
        "heal": None,
        "guarded": False,
        "tries": [tried("2 of 4 heads zero in 4 blocks", 0.5, True, 4_923_000) | {"conditions": []}],
        "points": [],
    }
    add["measured"] = {"about.json": MEASURED | {"tries": MEASURED["tries"][:1]}}
    made.add("zeroed", {"kind": "prune", "model": "specialist"}, "model", files=files | {"about.json": mask}, **add)
    lost = ABOUT | {"kept": None, "verdict": "none of 1 holds: the model before", "asked": None}
    lost |= {
        "tries": [tried("broken", 0.3, False, 4_000_000) | {"conditions": [], "why": "the output is not a number"}]
    }
    del lost["tries"][0]["size"], lost["tries"][0]["score"]
    made.add(
        "chosen",
        {"kind": "guard", "before": "specialist"},
        "model",
        files=files | {"about.json": lost},
        inputs={"specialist": "before"},
    )
    return collect(made.result, "t")


def test_every_try_has_its_sizes_and_conditions(run: Run):
    smaller, zeroed, chosen = pruned(run)
    assert [(m.title, m.kept, m.verdict) for m in smaller.models] == [
        ("before", False, ""),
        ("160 of 704 MLP channels removed", False, "does not hold"),
        ("<b>96</b> of 704 MLP channels removed", True, "holds"),
    ]
    assert smaller.models[1].cells[0] == "22.7%"
    assert smaller.models[0].cells[3:8] == ("9.85 MB", "6.14 kB", "20 ms", "250", "–")
    assert smaller.models[1].cells[3:8] == ("8.37 MB", "6.14 kB", "18 ms", "286", "1.14 ×")
    assert "Bytes as predicted in 2 of 2" in smaller.sentence
    assert [(c.name, c.holds) for c in smaller.conditions][:2] == [("token_f1", False), ("general bits per byte", True)]
    assert smaller.conditions[1].cells[4].startswith("at most")
    assert "2 models were tried" in smaller.sentence
    assert "Mask only, nothing saved" in zeroed.sentence
    assert "No guard looked" in zeroed.sentence
    assert zeroed.models[1].verdict == "not looked at"
    assert chosen.models[0].kept
    assert chosen.conditions[0].why == "the output is not a number"


def test_it_stands_on_the_page_and_in_markdown(run: Run):
    board = rank(run)
    page, text = render(run, board), as_markdown(run, board)
    assert 'href="#pruned"' in page
    for shown in (page, text):
        assert "Made smaller" in shown
        assert "general bits per byte" in shown
        assert "<b>96</b>" not in shown
    assert page.count('<span class="quiet">does not hold</span>') == 2
    assert '<span class="quiet">holds, kept</span>' in page
    assert '<span class="quiet">the output is not a number</span>' in page  # below its condition, in no wide column
    assert "Score over the share" in page


def test_a_run_without_pruning_says_nothing_of_it(tmp_path: Path):
    collected = collect(fakes.one_contender(tmp_path), "t")
    board = rank(collected)
    assert pruned(collected) == ()
    assert "Made smaller" not in render(collected, board) + as_markdown(collected, board)
