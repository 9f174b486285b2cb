"""A contender in fewer bits: what a recipe may say of it. Imports nothing heavy."""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Literal

from pydantic import Field

from metier.core.errors import MissingExtra
from metier.core.stage import Config, ModelRef


class Held(Config):
    """A contender whose weights are rounded when it is loaded, as an exported model's are."""

    model: ModelRef
    """The model, as elsewhere; an adapter is merged first."""
    bits: Literal["8bit", "4bit"]
    """8bit: LLM.int8. 4bit: NF4 with double quantisation. Both by bitsandbytes. Of an `export` step that wrote these
    bits, the files that it wrote; of any other model the weights are rounded when it is loaded."""
    name: str | None = Field(None, min_length=1)
    """What it is called in results. Left out: the model's name with the bits."""

    @property
    def title(self) -> str:
        """What it is called in results."""
        return self.name or f"{self.model} ({self.bits})"


def check_held(models: Iterable[object]) -> None:
    """Raise MissingExtra where a contender in fewer bits lacks its package."""
    if any(isinstance(one, Held) for one in models) and find_spec("bitsandbytes") is None:
        raise MissingExtra("bitsandbytes", "quant", needed_by="a contender in fewer bits")
