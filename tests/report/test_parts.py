"""Axes, curves, the lineage picture and wording, each on its own."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from metier.report import lineage, plots, wording


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([0.1, 0.8], 0.0, 0.8),
        ([0.3, 1.0], 0.0, 1.0),
        ([2.31, 0.6], 0.5, 2.5),
        ([], 0.0, 1.0),
        ([5.0], 2.0, 8.0),
        ([0.0], -0.6, 0.6),
    ],
)
def test_axes_are_round(values, low, high):
    axis = plots.scale(values, bounded=bool(values) and max(values) <= 1)
    assert (axis.low, axis.high) == (pytest.approx(low), pytest.approx(high))


@settings(max_examples=60)
@given(st.lists(st.floats(-1e9, 1e9, allow_nan=False), max_size=20))
@example([5e-324])
@example([1e9, 1e9 - 1e-7])
@example([1e-12, 3e-12])
def test_an_axis_holds_its_values_and_few_ticks(values):
    axis = plots.scale(values)
    assert axis.low < axis.high
    assert 2 <= len(axis.ticks) <= 12
    for value in values:
        assert 0 <= axis.at(value) <= 100
        slack = 1e-6 * (axis.high - axis.low)
        assert axis.low - slack <= value <= axis.high + slack


def test_long_curves_are_thinned_by_means():
    points = [(float(i), float(i % 2)) for i in range(10_000)]
    thinned = plots.thin(points)
    assert len(thinned) <= plots.POINTS
    assert all(0.4 <= y <= 0.6 for _, y in thinned)
    assert plots.thin(points[:5]) == points[:5]


def test_a_curve_of_one_point_is_a_dot():
    drawn = plots.curves([plots.Line("loss", "loss", [(1.0, 2.0)])], title="t", x_label="steps")
    assert "<circle" in drawn


def test_plots_escape_titles():
    drawn = plots.curves([plots.Line("l", "loss", [(1.0, 2.0), (2.0, 1.0)])], title="<b>\u202e", x_label="&")
    assert "&lt;b&gt;‹U+202E›" in drawn
    assert "<b>" not in drawn


def boxes(*pairs):
    return [lineage.Box(name, "kind", tuple(parents.split())) for name, parents in pairs]


def test_boxes_stand_below_what_they_read_and_apart():
    drawn = lineage.picture(boxes(("a", ""), ("b", "a"), ("c", "a b"), ("d", "c"), ("e", "")))
    tops = dict(zip("abcde", (float(y) for y in re.findall(r'<rect x="[\d.]+" y="([\d.]+)"', drawn)), strict=True))
    assert tops["a"] < tops["b"] < tops["c"] < tops["d"]
    assert drawn.count('class="arrow"') == 4
    placed = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)"', drawn)
    for i, (x, y) in enumerate(placed):
        for other_x, other_y in placed[:i]:
            assert y != other_y or abs(float(x) - float(other_x)) >= lineage.WIDTH


def test_lineage_of_nothing_and_of_strangers():
    assert lineage.picture([]) == ""
    assert 'class="arrow"' not in lineage.picture(boxes(("a", "unknown")))


@settings(max_examples=60)
@given(st.text())
def test_visible_text_hides_nothing(text):
    shown = wording.visible(text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]", shown)
    shown.encode("utf-8")
    assert wording.visible(shown) == shown


def test_visible_keeps_what_scripts_need():
    for text in ("a\tb\nc", "नमस्ते\u200d", "می\u200cخواهم", "é 漢字 🧑\u200d🚀", "\ufffd"):
        assert wording.visible(text) == text
    assert wording.visible("a\r\nb\rc\x00\ud800") == "a\nb‹U+000D›c‹U+0000›‹U+D800›"


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (wording.number(None), "–"),
        (wording.number(float("nan")), "–"),
        (wording.number(-0.001), "0.00"),
        (wording.number(-1234.5, 1), "−1,234.5"),
        (wording.signed(0.25), "+0.25"),
        (wording.signed(-0.25), "−0.25"),
        (wording.interval(None, 1), ""),
        (wording.probability(0.0004), "< 0.001"),
        (wording.probability(None), "–"),
        (wording.short_count(4_623_360), "4.62 M"),
        (wording.short_count(999), "999"),
        (wording.duration(0.041), "41 ms"),
        (wording.duration(59.97), "1 min 00 s"),
        (wording.duration(7500), "2 h 05 min"),
        (wording.memory(2**30), "1.00 GiB"),
        (wording.setting({"lora": {}}), "{lora}"),
        (wording.setting({"lora": {"r": 8, "targets": None, "on": True}}), "{lora: {r: 8, on: true}}"),
        (wording.cut("abcdef", 3), "abc … (3 more characters)"),
    ],
)
def test_wording(shown, wanted):
    assert shown == wanted
