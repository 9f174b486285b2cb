"""What people look at: `runs/<recipe>/` with the model, its adapters, the leaderboard and one self-contained page.

    publish.py      the way in: collect, write aside, rename
    collect.py      finished artifacts -> plain dataclasses; the only reader of files here
    leaderboard.py  roles, rank order, ties, and `leaderboards_full.json`
    outcome.py      gain and damage: the page's first part
    standing.py     the leaderboard as a table that can be sorted
    samples.py      which questions are shown side by side, and how they are marked
    wording.py      numbers, verdicts and model text as readable, harmless strings
    lineage.py      the picture of the steps; plots.py: intervals and curves. Both plain SVG
    page.py         everything above -> `templates/` -> one HTML file

Never called by a stage. Needs no torch.
"""

from metier.report.publish import publish

__all__ = ["publish"]
