"""What a recipe may ask of arithmetic on weights: `combine`, `residual`, `interpolate`. Imports nothing heavy."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from metier.core.errors import DataError, RecipeError
from metier.core.machine import Estimate, Machine
from metier.core.stage import Context, ModelRef, Needs, Source, Stage

DtypeName = Literal["base", "float32", "bfloat16"]


class Combine(Stage):
    """One model of several that were trained from the same base: adapters of any kind, or whole models."""

    produces: ClassVar[str] = "model"

    kind: Literal["combine"] = "combine"
    """What this step does."""
    models: list[ModelRef] = Field(min_length=1)
    """What to combine. The first one's tokenizer and chat template are kept."""
    base: ModelRef
    """The model that all were trained from."""
    method: Literal["linear", "task_arithmetic", "ties"] = "linear"
    """`linear`: the average of the models. `task_arithmetic`: the base plus the weighted sum of what each training
    changed. `ties`: the base plus what the changes agree on, so that they do not cancel out."""
    weights: list[float] | None = None
    """One for each model; equal ones where nothing is given. Of `linear` they are shares, and are made to sum to 1. Of
    the others they scale each change, 1 being all of it."""
    density: float = Field(0.2, gt=0, le=1)
    """Of `ties`: the share of each change that is kept, its largest numbers."""
    dtype: DtypeName = "base"
    """Number format of the written weights; `base`: bfloat16 where the base's files are, else float32."""

    def check(self, sources: Mapping[str, Source]) -> None:
        """Weights fit the models, settings have an effect, and adapters were trained on the base."""
        from metier.models.fitting import check_made_from

        for index, name in enumerate(self.models):
            if name in self.models[:index]:
                raise RecipeError("models names the same one twice", where="models", value=name, cure="name it once")
        if self.weights is not None and len(self.weights) != len(self.models):
            raise RecipeError(
                f"there are {len(self.models)} models", where="weights", value=self.weights, cure="give one for each"
            )
        if self.method != "ties" and "density" in self.model_fields_set:
            raise RecipeError("density is for ties alone", where="density", value=self.density, cure="leave it out")
        if self.method == "linear" and sum(self.shares) == 0:
            raise RecipeError("the shares sum to 0", where="weights", value=self.weights, cure="give positive ones")
        if self.method == "ties" and min(self.shares) <= 0:
            raise RecipeError(
                "weights of ties are above 0", where="weights", value=self.weights, cure="leave a model out"
            )
        for name in self.models:
            for folder in sources[name].paths if sources[self.base].paths else ():
                check_made_from(folder, sources[self.base].path, field="models")

    @property
    def shares(self) -> list[float]:
        """A weight for each model."""
        return self.weights or [1.0] * len(self.models)

    def estimate(self, sources: Mapping[str, Source], machine: Machine) -> Estimate | None:  # noqa: ARG002
        """Memory and disk, from the weights' headers."""
        from metier.export.estimate import combine_estimate

        return combine_estimate(sources[self.base], len(self.models) if self.method == "ties" else 1, dtype=self.dtype)

    def run(self, ctx: Context) -> Mapping[str, float]:
        """Combine and write. Metrics: parameters and bytes."""
        from metier.export.combine import ties, weighted, write_combined
        from metier.text.chat import stop_ids

        base, models = ctx.source(self.base).path, [ctx.source(name).path for name in self.models]
        weights = self.shares
        if self.method == "ties":
            made = ties(base, models, weights, self.density, ctx.check_stop)
        else:
            if self.method == "linear":
                weights = [weight / sum(weights) for weight in weights]
            made = weighted(base, models, weights, ctx.check_stop)
        about = {"method": f"combine, {self.method}", "weights": dict(zip(self.models, weights, strict=True))}
        return write_combined(made, base, ctx.out, self.dtype, about, stop=stop_ids(made.tokenizer))


class Residual(Stage):
    """Give a base that read on what tuning had taught its sibling: model + weight x (chat - base).

    For where a chat model of the same base exists: pre-train the base further, then add this instead of tuning anew.
    """

    produces: ClassVar[str] = "model"

    kind: Literal["residual"] = "residual"
    """What this step does."""
    model: ModelRef
    """The model that has read on: usually a `pretrain` step."""
    chat: ModelRef
    """The chat model. Its tokenizer and chat template are kept."""
    base: ModelRef
    """The model that the chat model was tuned from, and `model` was trained from."""
    weight: float = Field(1.0, gt=0)
    """How much of it to add."""
    dtype: DtypeName = "base"
    """As in `combine`."""

    def check(self, sources: Mapping[str, Source]) -> None:
        """Three different models; adapters were trained on the base."""
        from metier.models.fitting import check_made_from

        if len({self.model, self.chat, self.base}) < 3:
            raise RecipeError("the three models must be different", where="chat", value=self.chat)
        for field, name in (("model", self.model), ("chat", self.chat)):
            for folder in sources[name].paths if sources[self.base].paths else ():
                check_made_from(folder, sources[self.base].path, field=field)

    def estimate(self, sources: Mapping[str, Source], machine: Machine) -> Estimate | None:  # noqa: ARG002
        """Memory and disk, from the weights' headers."""
        from metier.export.estimate import combine_estimate

        return combine_estimate(sources[self.base], 1, dtype=self.dtype)

    def run(self, ctx: Context) -> Mapping[str, float]:
        """Add and write. Metrics: parameters and bytes."""
        from metier.export.combine import residual, write_combined
        from metier.text.chat import stop_ids

        model, chat, base = (ctx.source(name).path for name in (self.model, self.chat, self.base))
        made = residual(model, chat, base, self.weight, ctx.check_stop)
        about = {"method": "residual", "weight": self.weight}
        return write_combined(made, base, ctx.out, self.dtype, about, stop=stop_ids(made.tokenizer))


class Interpolate(Stage):
    """Go back towards the base as far as a limit on forgetting asks: base + weight x (model - base).

    Tries the weights from the largest on, measures bits per byte on general documents, and keeps the first that is
    within the limit. Fails where none is.
    """

    produces: ClassVar[str] = "model"

    kind: Literal["interpolate"] = "interpolate"
    """What this step does."""
    model: ModelRef
    """The trained model."""
    base: ModelRef
    """The model that it was trained from."""
    documents: Annotated[str, Needs("documents")]
    """The step whose held-out documents stand for general text."""
    max_rise: float = Field(0.02, ge=0)
    """How much the bits per byte on them may be above the base's: by the upper end of the paired interval."""
    weights: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], min_length=1
    )
    """What to try."""
    limit: int | None = Field(None, ge=2)
    """Read at most so many documents, evenly spaced."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of the interval."""
    dtype: DtypeName = "base"
    """As in `combine`."""

    def check(self, sources: Mapping[str, Source]) -> None:
        """There is text to measure on, and an adapter was trained on the base."""
        from metier.models.fitting import check_made_from

        for folder in sources[self.documents].paths:
            path = folder / "heldout.jsonl"
            if not path.is_file() or not path.stat().st_size:
                raise DataError(
                    f"there are no documents: the heldout split of {self.documents!r} is empty",
                    where="documents",
                    cure="give that step `heldout_fraction` or a source for this split",
                )
        for folder in sources[self.model].paths if sources[self.base].paths else ():
            check_made_from(folder, sources[self.base].path, field="model")

    def estimate(self, sources: Mapping[str, Source], machine: Machine) -> Estimate | None:  # noqa: ARG002
        """Memory and disk, from the weights' headers."""
        from metier.export.estimate import combine_estimate

        return combine_estimate(sources[self.base], 2, dtype=self.dtype)

    def run(self, ctx: Context) -> Mapping[str, float]:
        """Try, keep, write. Metrics: the weight, bits per byte, and by how much they rose."""
        from dataclasses import asdict

        from metier.export.combine import interpolate, write_combined
        from metier.text.artifacts import read_documents
        from metier.text.chat import stop_ids

        held = read_documents(ctx.source(self.documents).path, "heldout")
        count = min(len(held), self.limit or len(held))
        base = ctx.source(self.base).path
        made = interpolate(
            ctx.source(self.model).path,
            base,
            [held[i * len(held) // count] for i in range(count)],
            weights=self.weights,
            limit=self.max_rise,
            confidence=self.confidence,
            events=ctx.events,
            check_stop=ctx.check_stop,
            kept=ctx.scratch,
        )
        about = {
            "method": "interpolate",
            "weight": made.chosen.weight,
            "max_rise": self.max_rise,
            "documents": count,
            "tries": [asdict(one) for one in made.tries],
        }
        size = write_combined(made.loaded, base, ctx.out, self.dtype, about, stop=stop_ids(made.loaded.tokenizer))
        chosen = made.chosen
        return {"weight": chosen.weight, "bits_per_byte": chosen.bits_per_byte, "rise": chosen.rise, **size}
