"""What a recipe may ask of a model as a source of data: the stages `recall` and `rehearse`. Imports nothing heavy.

Both ask a model, before it is trained, for what it would say of its own accord. Mixed into training (`replay: {step:
...}`), that holds it to what it could do, where no general text is at hand: replay from the model itself (Robins 1995;
for language models Huang et al. 2024, arXiv 2403.01244).
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from metier.core.stage import Context, ModelRef, Needs, Stage
from metier.text.prompts import PromptName


class Speaking(Stage):
    """What both have in common: who speaks, and how freely."""

    version: ClassVar[int] = 1

    model: ModelRef
    """The model to ask: usually the one that training starts from."""
    max_new_tokens: int = Field(256, ge=1)
    """A text is cut after so many tokens."""
    temperature: float = Field(1.0, gt=0)
    """Tokens are drawn, the more freely the higher. 1 speaks as the model was trained to."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Draw only among the likeliest tokens that together have this probability."""
    batch_size: int = Field(32, ge=1)
    """Texts made at a time."""
    seed: int = Field(0, ge=0)
    """Of the draws. Each text has a generator of its own."""


class Recall(Speaking):
    """General documents that the model itself makes up, from nothing."""

    kind: Literal["recall"] = "recall"
    produces: ClassVar[str] = "documents"

    count: int = Field(500, ge=1)
    """How many texts to ask for."""
    min_chars: int = Field(20, ge=1)
    """Shorter texts are left out."""

    def run(self, ctx: Context) -> Mapping[str, float]:
        """Write train, with what was left out."""
        from metier.synthesize.speaking import recall

        return recall(self, ctx)


class Rehearse(Speaking):
    """General questions that the model itself answers, and makes up where none are given."""

    kind: Literal["rehearse"] = "rehearse"
    produces: ClassVar[str] = "examples"

    questions: Annotated[str, Needs("examples")] | None = None
    """A step whose trained questions are asked again: the answers in it are not used. Left out: the model makes up
    questions too, which takes a model that was taught to chat (Xu et al. 2024, arXiv 2406.08464)."""
    count: int | None = Field(None, ge=1)
    """How many questions to ask at most. Left out: all of the step's, or 500 made up."""
    prompt: PromptName = "auto"
    """How a conversation is written down for it. auto: the model's own template, else plain."""
    min_chars: int = Field(1, ge=1)
    """Shorter answers are left out."""

    def run(self, ctx: Context) -> Mapping[str, float]:
        """Write train, with what was left out."""
        from metier.synthesize.speaking import rehearse

        return rehearse(self, ctx)
