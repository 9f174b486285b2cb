"""What a recipe may say of how pairs are made: fact tables, and how a teacher model is asked. Imports nothing heavy."""

from pydantic import Field, field_validator

from metier.core.stage import Config, FilePattern
from metier.synthesize.pair import TYPES, QuestionType
from metier.text.prompts import PromptName


class FactTable(Config):
    """A table of facts and the templates that tell and ask them."""

    path: FilePattern
    """The table: CSV, TSV or JSON Lines, a row for each thing and a column for each of its attributes."""
    templates: FilePattern
    """The YAML file with `name`, `passage` and `templates`."""
    wordings: int | None = Field(None, ge=1)
    """At most so many wordings of each question about a row, drawn by the seed. Left out: all."""


class Ask(Config):
    """How a teacher model is asked."""

    types: list[QuestionType] = Field(default_factory=lambda: list(TYPES), min_length=1)
    """The kinds of questions, in turn."""
    per_passage: int = Field(3, ge=1, le=20)
    """Questions to ask for of each passage; fewer may come, where a passage does not give as many."""
    passage_chars: int = Field(1500, ge=100)
    """Characters of a passage. Documents are cut between paragraphs, or else between sentences."""
    max_passages: int | None = Field(None, ge=1)
    """Ask of at most so many passages, evenly spaced over all. Left out: all."""
    seeds: FilePattern | None = None
    """Questions and answers in your own style, which the teacher is shown: CSV, TSV or JSON Lines with `question` and
    `answer`."""
    seeds_shown: int = Field(3, ge=1, le=20)
    """How many of them it is shown at a time, drawn for each passage."""
    self_check: bool = True
    """Whether the teacher is asked again, of every pair, if the passage answers the question and bears out the answer.
    What it denies is left out."""
    attempts: int = Field(2, ge=1, le=5)
    """How often a passage is asked about where the reply is not the JSON that was asked for."""
    max_new_tokens: int = Field(1024, ge=16)
    """A reply is cut after so many tokens."""
    temperature: float = Field(0.0, ge=0)
    """As in `answer`."""
    top_p: float = Field(1.0, gt=0, le=1)
    """As in `answer`."""
    batch_size: int = Field(8, ge=1)
    """Passages answered at a time by a model that runs here."""
    prompt: PromptName = "auto"
    """How a conversation is written down for a model that runs here. auto: the model's own template, else plain."""
    max_requests: int | None = Field(None, ge=1)
    """Refuse to start where more questions may be put to the teacher than this."""

    @field_validator("types")
    @classmethod
    def _once(cls, types: list[QuestionType]) -> list[QuestionType]:
        if len(set(types)) < len(types):
            raise ValueError("name each kind once")
        return types
