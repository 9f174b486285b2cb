"""Small stages for tests of recipes, the pipeline and the command line: they move text about and load no model.

Run as a program it is the command line with these stages: `python fake_stages.py run recipe.yaml`.
"""

import json
import sys
import time
import types
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from metier.core.errors import DataError, TrainingError
from metier.core.stage import Config, Context, FilePattern, ModelRef, Needs, Runtime, Source, Stage


class TextSource(Config):
    path: FilePattern
    """Where the text is."""
    field: str = "text"
    """The key of the text."""


class Lora(Config):
    r: int = Field(8, ge=1)
    """Rank."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """Which layers."""


class WithLora(Config):
    lora: Lora


class Freeze(Config):
    blocks: int
    """How many."""


class WithFreeze(Config):
    freeze: Freeze


class Texts(Stage):
    """Gather text."""

    kind: Literal["texts"] = "texts"
    produces = "documents"
    sources: list[TextSource]
    """What to read."""
    min_chars: int = Field(0, ge=0)
    """Shorter texts are left out."""
    workers: Annotated[int, Runtime()] = 1
    """Readers; no effect on the result."""

    def check(self, sources: Mapping[str, Source]) -> None:
        for source in self.sources:
            for path in sources[source.path].paths:
                if path.stat().st_size == 0:
                    raise DataError("the file is empty", where=str(path), cure="give one with text")

    def run(self, ctx: Context) -> dict[str, float]:
        texts = [path.read_text() for source in self.sources for path in ctx.source(source.path).paths]
        kept = [text for text in texts if len(text) >= self.min_chars]
        (ctx.out / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in kept))
        (ctx.measured / "about.json").write_text(json.dumps({"at": time.time()}))
        return {"documents": len(kept)}


class Teach(Stage):
    """Teach a model, slowly if asked to; it remembers how far it came."""

    kind: Literal["teach"] = "teach"
    produces = "model"
    model: ModelRef
    """The model to start from."""
    documents: Annotated[str, Needs("documents")]
    """What to learn from."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate."""
    epochs: int = Field(1, ge=1)
    """Rounds."""
    shuffle: bool = True
    """Whether to shuffle."""
    method: Literal["full"] | WithFreeze | WithLora = "full"
    """What is trained."""
    broken: Literal["no", "loss", "bug", "nan"] = "no"
    """How it fails."""
    seconds: Annotated[float, Runtime()] = 0.0
    """How long a round takes."""

    def run(self, ctx: Context) -> dict[str, float]:
        if self.broken == "loss":
            raise TrainingError("the loss is not finite", value=self.learning_rate, cure="lower learning_rate")
        if self.broken == "bug":
            raise ZeroDivisionError("a mistake")
        progress = ctx.scratch / "rounds"
        first = int(progress.read_text()) if progress.exists() else 0
        for done in range(first, self.epochs):
            (ctx.out / "half").write_text("unfinished")
            ctx.check_stop()
            time.sleep(self.seconds)
            progress.write_text(str(done + 1))
            ctx.events.progress(
                "train", done + 1, self.epochs, unit="steps", loss=1 / (done + 1), tokens_per_second=9.5
            )
        (ctx.out / "half").unlink()
        texts = (ctx.source(self.documents).path / "train.jsonl").read_text()
        base = ctx.source(self.model)
        (ctx.out / "config.json").write_text(json.dumps({"base": base.link, "texts": texts}))
        (ctx.out / "model.safetensors").write_text(f"{self.learning_rate} {self.epochs}")
        ctx.events.note(f"went on from round {first}")
        return {"loss": float("nan") if self.broken == "nan" else 0.5}


class Ask(Stage):
    """Ask models."""

    kind: Literal["ask"] = "ask"
    produces = "opinions"
    models: list[ModelRef]
    """Who is asked."""
    questions: Annotated[str, Needs("examples")] | None = None
    """What is asked."""

    def run(self, ctx: Context) -> dict[str, float]:
        sizes = {name: len((ctx.source(name).path / "config.json").read_text()) for name in self.models}
        (ctx.out / "sizes.json").write_text(json.dumps(sizes))
        return {"models": len(sizes)}


class Pairs(Stage):
    """Gather questions."""

    kind: Literal["pairs"] = "pairs"
    produces = "examples"
    sources: list[TextSource]
    """What to read."""

    def run(self, ctx: Context) -> dict[str, float]:
        (ctx.out / "train.jsonl").write_text("")
        return {}


CATALOGUE: dict[str, type[Stage]] = {"texts": Texts, "pairs": Pairs, "teach": Teach, "ask": Ask}


def install() -> None:
    """Let the whole program know these stages and no others."""
    module = types.ModuleType("metier.stages")
    module.CATALOGUE = CATALOGUE  # type: ignore[attr-defined]
    module.STAGES = tuple(CATALOGUE.values())  # type: ignore[attr-defined]
    sys.modules["metier.stages"] = module


if __name__ == "__main__":
    install()
    from metier.cli import main

    main()
