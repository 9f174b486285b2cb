"""What a recipe may ask of pruning: `prune` makes a model smaller, `guard` keeps what holds. Imports nothing heavy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from metier.core.errors import ModelError, RecipeError
from metier.core.machine import Estimate, Machine
from metier.core.stage import Context, ModelRef, Source, Stage
from metier.models.builtin import CONFIG, check_folder, is_adapter, plain_config
from metier.prune.anatomy import SUPPORTED, Cut, cache_bytes, cut_config, parameters, shape_of
from metier.prune.methods import Method, WeightsMethod, cuts, needs_calibration
from metier.prune.settings import Calibration, Guard, calibration_source, check_split

PROCESS = 480e6
"""A process with Python, torch and transformers, as measured for training."""
LOOKING = 200e6
"""What generation, likelihood and their metrics hold beside a small model: the seedling's steps took that much more."""
SMALLER = [0.75, 0.5, 0.25]


class Prune(Stage):
    """Make a model smaller, or sparse, and keep that only where the guard holds; else try less, down to nothing.

    What is written loads with stock transformers. Sizes before and after are counted, never looked up; where weights
    are only set to zero, that is said: nothing is saved then.
    """

    kind: Literal["prune"] = "prune"
    """What this step does."""
    produces: ClassVar[str] = "model"
    version: ClassVar[int] = 2

    model: ModelRef
    """The model to prune: built like Llama, Mistral, Qwen2 or GPT-2. An adapter is merged into its base first."""
    method: Method
    """What is taken: {heads: ...}, {width: ...}, {layers: ...} or {weights: ...}; one kind a step, of steps there may
    be several."""
    calibration: Calibration = Calibration()
    """The text from which it is read what matters least."""
    heal: Literal["reconstruct"] | None = None
    """reconstruct: solve the projections behind what was taken anew, by least squares on the calibration text, so that
    blocks give again what they gave. For a longer cure train the pruned model (`tune`, `pretrain`, `teacher`) with the
    guard behind it (`guard`)."""
    guard: Guard | Literal[False]
    """What must still hold. false: nobody looks, and what was asked is done."""
    smaller: list[float] = Field(default=SMALLER)
    """Where something does not hold, these shares of what was asked are tried, falling; then nothing is taken."""

    @field_validator("smaller")
    @classmethod
    def _fall(cls, shares: list[float]) -> list[float]:
        if any(not 0 < share < 1 for share in shares) or shares != sorted(set(shares), reverse=True):
            raise ValueError("shares of what was asked, between 0 and 1, each below the one before")
        return shares

    @model_validator(mode="after")
    def _settings_agree(self) -> "Prune":
        if self.heal is not None and isinstance(self.method, WeightsMethod):
            raise ValueError(
                "reconstruction refits what is left of heads, width or layers; for single weights leave `heal` out, "
                "and train the result"
            )
        if self.guard is False and "smaller" in self.model_fields_set:
            raise ValueError("`smaller` has no effect with `guard: false`: nothing is ever found wanting")
        if not self.calibrates and "calibration" in self.model_fields_set:
            raise ValueError("`calibration` has no effect: weights alone say what is taken")
        return self

    @property
    def calibrates(self) -> bool:
        """Whether text is read to choose or to refit."""
        return needs_calibration(self.method) or self.heal is not None

    def check(self, sources: Mapping[str, Source]) -> None:
        """Raise InputError where the model has not what is to be taken, or there is nothing to read."""
        for folder in sources[self.model].paths:
            self.cuts_of(folder)
        if self.calibrates:
            step, _ = calibration_source(self.calibration, self.guard or None, "calibration")
            check_split(sources[step], "train", "calibration")
        if self.guard:
            self.guard.check(sources, "guard")

    def estimate(self, sources: Mapping[str, Source], machine: Machine) -> Estimate | None:  # noqa: ARG002
        """Memory and disk; time is not told. About so, where the model is not made yet."""
        config = _config_behind(sources[self.model])
        if config is None or config.get("model_type") not in SUPPORTED:
            return None
        size, stored = parameters(config), 2.0 if "16" in str(config.get("dtype") or config.get("torch_dtype")) else 4.0
        hidden = 4.0 * self.calibration.samples * self.calibration.tokens * shape_of(config).hidden
        held = {"base": PROCESS, "the model": 4.0 * size, "the written one, read back": 4.0 * size}
        if self.guard:
            held["answers and readings"] = LOOKING
        if self.heal is not None:
            held |= {"the model before": 4.0 * size, "calibration": 2 * hidden}
        elif self.calibrates:
            held["calibration"] = hidden
        disk = {"the model": stored * size, "the try in question": stored * size}
        return Estimate(held, disk, None, about=not sources[self.model].paths)

    def cuts_of(self, folder: Path) -> list[Cut]:
        """What will be tried on the model in `folder`. Raises ModelError. Reads no weights."""
        check_folder(folder)
        return cuts(self.method, shape_of(_whole(folder)), self.smaller if self.guard else [])

    def run(self, ctx: Context) -> Mapping[str, float]:
        """Choose, cut, look, and write what holds. Metrics: ratio, tries, parameters, bytes, cache_bytes."""
        from metier.prune import working

        self.check(ctx.sources)  # what steps before it made was not there when the run began
        return working.prune(self, ctx)


class Keep(Stage):
    """Hand on the first of several models that holds what the guard asks, compared with the one before; else that one.

    For what comes between pruning and its proof: a pruned model that was healed by training, several sizes of it, or a
    merged or tuned one.
    """

    kind: Literal["guard"] = "guard"
    """What this step does."""
    produces: ClassVar[str] = "model"

    before: ModelRef
    """The model that all are compared with, and that is handed on where none holds."""
    models: list[ModelRef] = Field(min_length=1)
    """The candidates, the most wanted first."""
    conditions: Guard
    """What must still hold."""

    def check(self, sources: Mapping[str, Source]) -> None:
        """Raise InputError where a model is not whole or named twice, or the guard has nothing to look at."""
        names = [self.before, *self.models]
        for index, name in enumerate(self.models, 1):
            if name in names[:index]:
                raise RecipeError("a model is named twice", where="models", value=name, cure="name each once")
        for name in names:
            for folder in sources[name].paths:
                check_folder(folder)
                shape_of(_whole(folder))
        self.conditions.check(sources, "conditions")

    def run(self, ctx: Context) -> Mapping[str, float]:
        """Look at each in turn, and copy what holds. Metrics as of `prune`."""
        from metier.prune import working

        self.check(ctx.sources)
        return working.keep(self, ctx)


def predicted(config: Mapping[str, Any], cut: Cut, itemsize: int) -> dict[str, int]:
    """What a cut leaves, from the model's config.json: parameters, bytes of tensors, and cache bytes of a token.

    itemsize: bytes of a stored number. A tied weight is stored once.
    """
    left = cut_config(config, cut)
    count = parameters(left)
    return {"parameters": count, "bytes": count * itemsize, "cache_bytes": cache_bytes(shape_of(left), itemsize)}


def _config_behind(source: Source) -> dict[str, Any] | None:
    """The config.json of a model, or of the one that a step which has not run will start from."""
    for folder in source.paths:
        if (folder / CONFIG).is_file() or is_adapter(folder):
            return plain_config(folder)
    return next((found for before in source.made_from if (found := _config_behind(before)) is not None), None)


def _whole(folder: Path) -> dict[str, Any]:
    """The config.json of an unquantised model, or of an adapter's base."""
    config = plain_config(folder)
    if config.get("quantization_config") is not None:
        raise ModelError(
            "the weights are quantised, and cannot be pruned",
            where="model",
            value=config["quantization_config"].get("quant_method"),
            cure="use the model it was quantised from",
        )
    return config
