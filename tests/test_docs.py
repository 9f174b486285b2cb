"""The pages under docs/ say what the program does."""

import re
from pathlib import Path

import pytest

from metier.train.stage import Pretrain, Tune
from metier.track import TRACKERS
from metier.track.tracker import TRAINING

DOCS = Path(__file__).resolve().parents[1] / "docs"


def rows(page: str) -> dict[str, str]:
    """The rows of a page's tables by what stands between backticks in the first column."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return dict(re.findall(r"^\| `([^`]+)` \| (.*) \|$", text, re.MULTILINE))


def test_every_curve_and_tracker_is_in_the_page_on_tracking():
    assert set(rows("tracking.md")) == {*TRAINING, "dev_loss", "result/<metric>"}
    text = (DOCS / "tracking.md").read_text(encoding="utf-8")
    assert all(f"--track {name}" in text for name in TRACKERS)
