"""The tables of the five specialists are those that the measured rows make, and one of them runs at smoke size."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.recipes import (
    BEGIN,
    END,
    METHODS,
    SPECIALISTS,
    ablation_table,
    empty_sections,
    readme_table,
    stored,
    with_table,
)  # fmt: skip

ROOT = Path(__file__).resolve().parents[1]
STEPS = 8


@pytest.mark.parametrize(("page", "table"), [("README.md", readme_table), ("docs/specialists.md", ablation_table)])
def test_a_table_is_what_was_measured(page: str, table: object):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    assert callable(table)
    assert with_table(text, table()) == text, "run `python -m benchmarks.recipes table`"


def test_the_readme_has_a_row_for_each_training_step_of_each_specialist():
    lines = [line for line in readme_table().splitlines() if line.startswith("| [")]
    assert len(lines) == len(METHODS) == 8
    assert {re.match(r"\| \[([\w-]+)\]", line)[1] for line in lines} == set(SPECIALISTS)


def test_what_was_measured_of_a_specialist_beats_its_base():
    """Of those whose smoke run has rows; `python -m benchmarks.recipes smoke NAME` makes them."""
    rows = stored()
    gains = [row for case, row in rows.items() if "-smoke: " in case and " less seedling" in case]
    assert all(row["interval"][0] > 0 for row in gains), gains
    assert all(row["measured"] == 0 for case, row in rows.items() if "-smoke: sections" in case)


def test_a_section_that_says_nothing_is_found():
    full = "".join(f'<section id="s{i}"><h2>Title</h2><p>{"words " * 20}</p></section>' for i in range(8))
    assert empty_sections(full) == []
    assert empty_sections(
        full + '<section id="bare"><h2>A very long heading that says nothing else</h2></section>'
    ) == ["bare"]


@pytest.mark.slow
def test_a_specialist_runs_whole_at_smoke_size(tmp_path: Path):
    small = {
        "adapter.max_steps": 2, "adapter.dev_every": "null", "answers.limit": 4, "answers.max_new_tokens": 4,
        "likelihood.limit": 2, "likeness.max_steps": 1,
    }  # fmt: skip
    settings = [word for name, value in small.items() for word in ("--set", f"{name}={value}")]
    command = [
        str(Path(sys.executable).with_name("metier")),
        "run",
        str(ROOT / "recipes/medication.yaml"),
        "--smoke",
        "-q",
    ]
    done = subprocess.run([*command, *settings], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "runs/medication-smoke"
    assert done.stdout.strip() == str(out.relative_to(tmp_path) / "report.html")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "This is a smoke run" in page
    assert empty_sections(page) == []
    assert json.loads((out / "leaderboards_full.json").read_text(encoding="utf-8"))["notice"].startswith(
        "This is a smoke"
    )
    assert len(list((tmp_path / ".metier/refs/medication-smoke").iterdir())) == STEPS
    assert (out / "model/model.safetensors").is_file()
