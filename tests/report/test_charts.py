"""Plots with two axes: what they draw, when they keep silent, and that no string of others gets into them."""

import re
from itertools import pairwise

import fake_run as fakes
import pytest

from metier.report import charts
from metier.report.charts import Axes, Mark, Path
from metier.report.collect import collect
from metier.report.gallery import LENGTH_BINS, SHADES, _means, gallery
from metier.report.leaderboard import rank

AXES = Axes(charts.SHARES, charts.SHARES, "x", "y")
EVIL = "<script>\u202e\0"


def test_where_there_is_nothing_there_is_no_plot():
    assert charts.reliability([], title="t") == ""
    assert charts.lines([Path("a", "base", [])], axes=AXES, title="t") == ""
    assert charts.cloud([], [], role="base", axes=AXES, title="t") == ""
    assert charts.contenders([], axes=AXES, title="t") == ""
    assert charts.tradeoff([], title="t") == ""


def test_a_reliability_diagram_has_a_dot_for_each_bin_the_larger_the_more_it_holds():
    bins = [(0.2, 0.5, 10, 0.2, 0.8), (0.9, 0.9, 90, 0.8, 0.95)]
    drawn = charts.reliability(bins, title="t")
    sizes = [float(r) for r in re.findall(r'class="bubble[^>]* r="([\d.]+)"', drawn)]
    assert sizes[0] < sizes[1]
    assert 'cx="20%" cy="50%"' in drawn
    assert drawn.count("whisker") == 2


def test_names_in_a_plot_are_moved_apart_and_stay_inside():
    heights = charts._apart([50.0, 51.0, 50.5, 99.0, 99.5])
    ordered = sorted(heights)
    assert all(b - a >= charts.LABEL_GAP - 1e-9 for a, b in pairwise(ordered))
    assert max(heights) <= 100
    assert heights[0] < heights[2] < heights[1]


def test_strings_of_others_are_spelt_out_in_plots():
    mark = Mark(EVIL * 30, "base", 0.5, 0.5)
    for drawn in (
        charts.contenders([mark], axes=AXES, title=EVIL),
        charts.tradeoff([(0.1, 0.5, None, None, EVIL)], title=EVIL),
    ):
        assert "<script" not in drawn
        assert "\0" not in drawn
        assert "\u202e" not in drawn
        assert len(drawn) < 6000


def test_a_cloud_of_many_places_is_thinned_and_counts_what_coincides():
    points = [(i / 5000, (i * 7 % 5000) / 5000) for i in range(5000)]
    drawn = charts.cloud(points, [(0.5, 0.5)], role="base", axes=AXES, title="t")
    assert drawn.count("h0") <= charts.CLOUD
    assert 'class="cloud cloud-4' in charts.cloud([(0.5, 0.5)] * 20, [], role="base", axes=AXES, title="t")


def test_answers_of_one_length_are_not_parted_by_their_scores():
    means = _means([(3.0, float(i % 2)) for i in range(100)] + [(9.0, 1.0)] * 10)
    assert means == [(3.0, 0.5), (9.0, 1.0)]
    assert len(_means([(float(i), 0.0) for i in range(600)])) == LENGTH_BINS


def test_the_trade_off_marks_the_level_before_and_the_sizes():
    points = [(0.2, 0.6, 0.5, 0.7, "7 MiB"), (0.0, 0.7, None, None, "9 MiB")]
    drawn = charts.tradeoff(points, title="t")
    assert "7 MiB" in drawn
    assert "20 %" in drawn
    level = re.search(r'class="zero" x1="0" x2="100%" y1="([\d.]+)%"', drawn)
    assert level is not None
    assert float(level[1]) == pytest.approx(0, abs=1)  # 0.7 is the top of the axis


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    run = fakes.FakeRun(tmp_path_factory.mktemp("store"))
    fakes.add_data(run)
    fakes.add_models(run)
    fakes.add_answers(run)
    fakes.add_labels(run)
    fakes.add_pruning(run)
    collected = collect(run.result, "t")
    return gallery(collected, rank(collected))


def test_a_run_shows_every_plot_that_it_has_data_for(shown):
    (labels,) = shown.labels
    assert [m.name for m in labels.matrices] == ["seedling", "specialist"]  # not the constant
    first = labels.matrices[0].rows[0]
    assert (first[0], [c.count for c in first[1]], first[2]) == ("yes", [120, 130, 26], 276)
    assert first[1][0].right
    assert max(c.shade for m in labels.matrices for _, cells, _ in m.rows for c in cells) <= SHADES
    assert "0.123" in labels.reliability[0].note
    assert [f.name for f in shown.lengths] == ["specialist", "pairs-only", "reader", "seedling"]
    assert [f.name for f in shown.costs] == ["Latency", "Memory"]
    assert [f.name for f in shown.pruning] == ["smaller"]


def test_a_run_without_them_shows_none(tmp_path):
    collected = collect(fakes.one_contender(tmp_path), "t")
    found = gallery(collected, rank(collected))
    assert (found.labels, found.lengths, found.costs, found.pruning) == ((), (), (), ())
