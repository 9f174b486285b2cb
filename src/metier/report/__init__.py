"""What people look at: `runs/<recipe>/` with the model, its adapters, the leaderboard and one self-contained page.

    publish.py      the way in: collect, write aside, rename
    collect.py      finished artifacts -> plain dataclasses; the only reader of files here
    leaderboard.py  roles, rank order, ties, and `leaderboards_full.json`
    outcome.py      gain and damage: the page's first part
    standing.py     the leaderboard as a table that can be sorted
    samples.py      the answers that changed most, and how they are marked
    seen.py         contamination: what of the test was seen in training
    verdicts.py     what judges found and how far each can be trusted; judges.py: the same as the page's part
    synthesized.py   pairs that were made and what a model knew of them; the page to browse them
    gallery.py      which other plots there is data for; charts.py: how they are drawn
    markdown.py     the page's content as Markdown; spreadsheet.py: the leaderboard as CSV
    compare.py      any two runs, steps or contenders, item by item
    partial.py      `leaderboards_partial.json` while answers are made
    wording.py      numbers, verdicts and model text as readable, harmless strings
    lineage.py      the picture of the steps; plots.py: intervals and curves. Both plain SVG
    page.py         everything above -> `templates/` -> one HTML file

Never called by a stage. Needs no torch.
"""

from metier.report.partial import PartialBoard
from metier.report.publish import publish

__all__ = ["PartialBoard", "publish"]
