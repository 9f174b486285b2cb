"""What a recipe may say of how pairs are made: fact tables, and what asking may cost. Imports nothing heavy."""

from pydantic import Field

from metier.core.stage import Config, FilePattern


class FactTable(Config):
    """A table of facts and the templates that tell and ask them."""

    path: FilePattern
    """The table: CSV, TSV or JSON Lines, a row for each thing and a column for each of its attributes."""
    templates: FilePattern
    """The YAML file with `name`, `passage` and `templates`."""
    wordings: int | None = Field(None, ge=1)
    """At most so many wordings of each question about a row, drawn by the seed. Left out: all."""
