"""PubMedQA's own rows: a question on an abstract, its passages, a long answer, and yes, no or maybe.

The file is one object by PubMed ids (`ori_pqal.json`), which become the rows' ids. As an example, a row asks its
question after the passages and answers at length; what it decides is kept beside it. As a text, a row is its passages:
the long answer is the abstract's conclusion, and would give away what is asked.
Source: Jin et al., "PubMedQA: A dataset for biomedical research question answering", 2019.
"""

from collections.abc import Mapping
from typing import Any

FIELDS = {"question": "QUESTION", "context": "CONTEXTS", "answer": "LONG_ANSWER"}
CHOICES = "yes|no|maybe"


def is_pubmedqa(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this form."""
    return "QUESTION" in row and "CONTEXTS" in row


def meta(row: Mapping[str, Any]) -> dict[str, str]:
    """What stands beside the answer: the choices, the one that is right (`label`), and the year where it is known."""
    label = row.get("final_decision")
    found = {"choices": CHOICES, "label": label.strip().lower()} if isinstance(label, str) and label.strip() else {}
    year = row.get("YEAR")
    return {**found, "year": str(year)} if isinstance(year, str | int) and str(year).strip() else found
