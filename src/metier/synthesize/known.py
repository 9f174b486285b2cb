"""What a recipe may ask about what a model knows already: the stage `knows`. Imports nothing heavy."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, field_validator

from metier.core.stage import Context, ModelRef, Needs, Source, Stage
from metier.text.prompts import PromptName

Category = Literal["highly_known", "maybe_known", "weakly_known", "unknown"]
CATEGORIES: tuple[Category, ...] = get_args(Category)


class Knows(Stage):
    """Tag each pair by whether a model, before it is trained, can answer it already.

    A question is asked several times, each time after other examples: with the likeliest answer, and where that is
    never right, with drawn ones. The categories are those of Gekhman et al. 2024 (arXiv 2405.05904): `highly_known`,
    the likeliest answer is right every time; `maybe_known`, sometimes; `weakly_known`, only a drawn one is; `unknown`,
    none. Tuning on unknown facts teaches a model slowly, and to make things up.

    An answer is right where it has the words of the reference that the question does not have: so many of them as
    `recall` says, and all numbers; where the reference begins with yes or no, so does the answer.
    """

    kind: Literal["knows"] = "knows"
    produces: ClassVar[str] = "examples"
    version: ClassVar[int] = 1

    model: ModelRef
    """The model to ask: the one that training starts from."""
    examples: Annotated[str, Needs("examples")]
    """The step whose pairs are tagged, those of train, dev and test."""
    shots: int = Field(4, ge=0, le=32)
    """Examples before each question, of its train split, from other documents: they show the form of an answer."""
    rounds: int = Field(4, ge=1, le=32)
    """How often each question is asked, each time after other examples. 1 where there are no `shots`."""
    samples: int = Field(4, ge=0, le=64)
    """Answers drawn in each round, for questions whose likeliest answer is never right."""
    temperature: float = Field(0.5, gt=0)
    """Of the drawn answers."""
    recall: float = Field(0.8, gt=0, le=1)
    """Share of the reference's own words that an answer has to have."""
    max_new_tokens: int = Field(32, ge=1)
    """An answer is cut after so many tokens."""
    groups: Literal["known", "category", "keep"] = "known"
    """What scores are then broken down by. known: `known` and `unknown`, the first three categories being one.
    category: all four. keep: what it was before; the tag stands in the pairs' `meta` in any case."""
    train_on: list[Category] = Field(default_factory=lambda: list(CATEGORIES), min_length=1)
    """The categories that stay in train; the others are listed in `rejects.jsonl`. dev and test keep all."""
    prompt: PromptName = "auto"
    """How a conversation is written down for the model. auto: its own template, else plain."""
    batch_size: int = Field(32, ge=1)
    """Questions asked at a time."""
    seed: int = Field(0, ge=0)
    """Of the examples that are shown, and of the draws."""

    @field_validator("train_on")
    @classmethod
    def _once(cls, value: list[Category]) -> list[Category]:
        if len(set(value)) < len(value):
            raise ValueError("name each category once")
        return value

    def check(self, sources: Mapping[str, Source]) -> None:
        """There is something to ask, where that is known already. Raises DataError."""
        source = sources[self.examples]
        if source.paths:
            from metier.synthesize.knowing import read_splits

            read_splits(self, source.path)

    def run(self, ctx: Context) -> Mapping[str, float]:
        """Write the examples anew, each with its tag."""
        from metier.synthesize.knowing import tag

        return tag(self, ctx)
