"""The table of medicines that two sets are made of."""

from tools.specialists.common import Facts, table

COLUMNS = ("name", "class", "group", "use", "works", "given", "effect", "partner", "risk", "advice")


def medicines() -> list[Facts]:
    """A row for each medicine, its fields by COLUMNS."""
    return table("medicines.txt", COLUMNS)
