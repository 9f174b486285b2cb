"""How a run is shown."""

import io
from typing import Any

import pytest
from rich.console import Console

from metier.cli.console import LiveView, PlainLines, TimeLeft, line_for, progress_text
from metier.cli.wording import bytes_text, metrics_text, number_text, seconds_text


def progress(done: float, total: float | None = 100, **fields: Any) -> dict[str, Any]:
    return {
        "step": "tune",
        "event": "progress",
        "task": "train",
        "done": done,
        "total": total,
        "unit": "steps",
        **fields,
    }


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("event", "line"),
    [
        ({"event": "started", "kind": "tune", "why": "new"}, "[tune] started (tune; new)"),
        ({"event": "finished", "metrics": {"loss": 1.23456}, "seconds": 75}, "[tune] done in 1 min 15 s: loss 1.235"),
        ({"event": "cached", "metrics": {}}, "[tune] made already"),
        ({"event": "failed", "error": "no"}, "[tune] FAILED: no"),
        ({"event": "warning", "text": "look"}, "[tune] WARNING: look"),
        ({"event": "note", "text": "so"}, "[tune] so"),
        ({"event": "dev", "dev_loss": 2.5, "at": 10}, "[tune] loss on held-out data 2.5 at step 10"),
        ({"event": "train"}, None),
    ],
)
def test_events_as_lines(event: dict[str, Any], line: str | None):
    assert line_for({"step": "tune", **event}) == line


def test_progress_says_how_far_how_fast_and_how_long():
    text = progress_text(progress(20, loss=2.345678, tokens_per_second=8712.4), 80.0)
    assert text == "20/100 steps  loss 2.346  8,712 tokens/s  1 min 20 s left"
    assert progress_text(progress(7, None), None) == "7 steps"
    measured = progress_text(progress(20, learning_rate=0.000123456, utilisation=0.6149), None)
    assert measured == "20/100 steps  lr 0.00012  61% of peak"
    assert progress_text(progress(20, utilisation=None), None) == "20/100 steps"


def test_the_time_left_is_guessed_from_what_was_seen():
    clock = Clock()
    left = TimeLeft(clock)
    assert left.guess(progress(10)) is None
    clock.now = 20.0
    assert left.guess(progress(30)) == 70.0
    assert left.guess(progress(30, None)) is None


def test_plain_lines_are_throttled(capsys: pytest.CaptureFixture[str]):
    clock = Clock()
    lines = PlainLines(clock)
    for second in range(12):
        clock.now = second
        lines.hear(progress(second))
    lines.hear({"step": "tune", "event": "finished", "metrics": {}, "seconds": 12})
    out = capsys.readouterr().out.splitlines()
    assert out == [
        "[tune] train 5/100 steps  1 min 35 s left",
        "[tune] train 10/100 steps  1 min 30 s left",
        "[tune] done in 12 s",
    ]


def test_the_live_view_shows_the_running_task_and_keeps_what_is_done():
    screen = io.StringIO()
    with LiveView(Console(file=screen, force_terminal=True, width=120)) as view:
        view.hear({"step": "tune", "event": "started", "kind": "tune", "why": "new"})
        view.hear(progress(50, loss=1.5, tokens_per_second=900.0))
        view._progress.refresh()
        view.hear({"step": "tune", "event": "finished", "metrics": {"loss": 1.5}, "seconds": 3})
    shown = screen.getvalue()
    assert "[tune] started (tune; new)" in shown
    assert "50/100 steps  loss 1.5  900 tokens/s" in shown
    assert "[tune] done in 3.0 s: loss 1.5" in shown


def test_numbers():
    assert [seconds_text(s) for s in (None, 0.04, 9.96, 59, 61, 3599, 7260)] == [
        "",
        "0.0 s",
        "10.0 s",
        "59 s",
        "1 min 01 s",
        "59 min 59 s",
        "2 h 01 min",
    ]
    assert [number_text(n) for n in (3, 12345, 0.123456, 1234.5, 2e-5, 5000.0)] == [
        "3",
        "12,345",
        "0.1235",
        "1,234",
        "2e-05",
        "5,000",
    ]
    assert [bytes_text(n) for n in (5, 1500, 2_500_000, 3e9)] == ["5 bytes", "1.5 kB", "2.5 MB", "3.0 GB"]
    assert metrics_text(dict.fromkeys("abcdefg", 1)) == "a 1, b 1, c 1, d 1, e 1, ..."
