"""How much text a vocabulary needs. Imports nothing heavy."""

from pathlib import Path

from metier.core.errors import DataError
from metier.text.artifacts import about

LEAST_CHARACTERS = 50_000
"""About 8,000 words: below, counts of words say more about the texts chosen than about the domain."""


def check_size(folder: Path, step: str) -> None:
    """Raise DataError where a documents artifact has too little text to learn a vocabulary from."""
    found = (about(folder).get("characters") or {}).get("train", 0)
    if found < LEAST_CHARACTERS:
        raise DataError(
            f"step {step!r} has {found:,} characters to learn words from, and {LEAST_CHARACTERS:,} are the least",
            where="documents",
            value=step,
            cure="give that step more texts, or leave this step out: on so little text a vocabulary does not pay",
        )
