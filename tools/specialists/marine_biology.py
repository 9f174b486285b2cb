"""Held-out questions on the facts that `synthesize` asks in 150 pairs."""

from __future__ import annotations

import csv
from pathlib import Path

from tools.specialists.common import jsonl, slug

TABLE = Path(__file__).resolve().parents[2] / "recipes" / "data" / "marine-biology" / "reef.csv"
ASKED = {
    "definition": (
        ("Which group of living things includes the {name}?", "Tell me what the {name} is."),
        "The {name} is {article} {group}.",
    ),
    "food": (
        ("Which food does the {name} look for?", "The {name} is hungry. What will it eat?"),
        "The {name} feeds on {food}.",
    ),
    "home": (("In which place is the {name} at home?", "Where can the {name} be found?"), "The {name} lives {home}."),
    "size": (("Tell me how big the {name} is.", "What is the length of the {name}?"), "The {name} grows to {size}."),
    "feature": (
        ("What makes the {name} stand out?", "Name a mark of the {name}."),
        "The {name} has {feature}.",
    ),
}
"""By fact: the wordings, of which no training question has any, and the answer as the templates give it."""


def questions() -> list[dict[str, str]]:
    """Every fact of every row, in one of two wordings by turns."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = []
    for place, row in enumerate(rows):
        slots = {**row, "article": "an" if row["group"][0] in "aeiou" else "a"}
        for number, (fact, (wordings, answer)) in enumerate(ASKED.items()):
            found.append(
                {
                    "id": f"{slug(row['name'])}-{fact}",
                    "question": wordings[(place + number) % 2].format(**slots),
                    "answer": answer.format(**slots),
                    "group": fact,
                    "animal": row["name"],
                }
            )
    return found


def files() -> dict[str, str]:
    """The file that is made: table and templates beside it are written by hand."""
    return {"heldout.jsonl": jsonl(questions())}
